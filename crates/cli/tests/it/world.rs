//! A world of a test's own: a home for models, a clean environment, and servers on loopback.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

/// A folder that is one test's home, made anew.
pub(crate) struct World {
    pub(crate) home: PathBuf,
}

impl World {
    pub(crate) fn new(test: &str) -> Self {
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
        let _ = fs::remove_dir_all(&home);
        fs::create_dir_all(&home).unwrap();
        Self { home }
    }

    /// The program, with nothing in its environment but what tests give it.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moeba"));
        command.args(args).env_clear().env("MOEBA_HOME", &self.home);
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Finished {
        self.command(args).output().unwrap().into()
    }

    /// Writes the user's catalogue: one model named `tiny` with these sources.
    pub(crate) fn catalogue(&self, sources: &str) {
        let text = format!(
            "[[model]]\nname = \"tiny\"\ndescription = \"a test\"\nfamily = \"llama\"\n\
             total_params = 1\nactive_params = 1\nfile_bytes = 1\nlicence = \"MIT\"\n\
             sources = [{sources}]\n"
        );
        fs::write(self.home.join("models.toml"), text).unwrap();
    }

    /// A path in the folder of the model `tiny`.
    pub(crate) fn tiny(&self, name: &str) -> PathBuf {
        self.home.join("models/tiny").join(name)
    }

    /// Names in the folder of the model `tiny`, without the lock.
    pub(crate) fn tiny_names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.tiny(""))
            .map(|dir| dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
            .unwrap_or_default();
        names.retain(|name| name != ".lock");
        names.sort();
        names
    }
}

/// A command that has ended.
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Finished {
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    #[track_caller]
    pub(crate) fn failed_saying(self, wanted: &[&str]) -> Self {
        assert_eq!(self.code, Some(1), "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        for words in wanted {
            assert!(self.err.contains(words), "no `{words}` in:\n{}", self.err);
        }
        self
    }

    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        let finished = self.succeeded();
        serde_json::from_str(&finished.out)
            .unwrap_or_else(|error| panic!("{error} in:\n{}", finished.out))
    }
}

/// A request a server got: path and headers in lower case.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// First byte asked for.
    pub(crate) fn from(&self) -> usize {
        let range = self.header("range").and_then(|range| range.strip_prefix("bytes="));
        range.map_or(0, |range| range.trim_end_matches('-').parse().unwrap())
    }
}

/// What a server answers; after `cut` bytes of the body it hangs up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) cut: Option<usize>,
    /// Instead of hanging up, it says no more.
    pub(crate) hangs: bool,
}

impl Answer {
    /// The rest of `file` from where `asked` wants it, as a correct server sends it.
    pub(crate) fn rest_of(file: &[u8], asked: &Asked) -> Self {
        let from = asked.from();
        let answer = Self { status: 200, body: file[from..].to_vec(), ..Self::default() };
        if from == 0 {
            return answer;
        }
        let range = format!("bytes {from}-{}/{}", file.len() - 1, file.len());
        Self { status: 206, ..answer.with("content-range", &range) }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn cut_after(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }

    fn send(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        write!(head, "content-length: {}\r\n\r\n", self.body.len()).unwrap();
        stream.write_all(head.as_bytes())?;
        stream.write_all(&self.body[..self.cut.unwrap_or(self.body.len())])?;
        if self.hangs {
            std::thread::sleep(std::time::Duration::from_secs(30));
        }
        Ok(())
    }
}

/// A server on loopback that answers as `answer` says and remembers what it was asked.
pub(crate) struct Server {
    pub(crate) port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let remembered = Arc::clone(&asked);
        let answer = Arc::new(answer);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let (answer, remembered) = (Arc::clone(&answer), Arc::clone(&remembered));
                std::thread::spawn(move || {
                    let Some(request) = read_request(&stream) else { return };
                    remembered.lock().unwrap().push(request.clone());
                    let _ = answer(&request).send(stream);
                });
            }
        });
        Self { port, asked }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn read_request(stream: &TcpStream) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect();
    Some(Asked { path, headers })
}

/// Bytes that are different everywhere.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}
