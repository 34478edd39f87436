//! What a user of `bench-vs` may ask for.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

pub(crate) const HELP: &str = "\
cargo xtask bench-vs -m MODEL.gguf --peer PEER [FLAGS]

  -m FILE           the model, for both
  --peer PEER       path of a llama-bench, or `mistralrs` or `llama-cpp-python`, which are installed
                    from PyPI into target/bench-vs
  -p N,N            prompt lengths [512]
  -n N              answer length [64]
  --batch N         also N sequences that decode together; with llama-bench this needs
                    llama-batched-bench beside it
  --rounds N        how often both run, by turns [5]
  -t N              threads, for both [all]
  --moeba FILE      the moeba to run [built for release]
  --moeba-args ARGS, --peer-args ARGS
                    more flags for one of them, such as \"--isa avx2\" or \"-fa on\"
  --svg FILE        draw a plot
  --json            print everything as JSON
";

/// What both engines are asked to do.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) prompt: Vec<usize>,
    pub(super) generate: usize,
    /// Sequences that decode together; 1 for no such test.
    pub(super) batch: usize,
    pub(super) threads: usize,
}

/// The parsed command line.
#[derive(Debug)]
pub(super) struct Arguments {
    pub(super) model: PathBuf,
    pub(super) peer: String,
    pub(super) plan: Plan,
    pub(super) rounds: usize,
    pub(super) moeba: Option<PathBuf>,
    pub(super) moeba_args: Vec<String>,
    pub(super) peer_args: Vec<String>,
    pub(super) svg: Option<PathBuf>,
    pub(super) json: bool,
}

impl Arguments {
    pub(super) fn parse(arguments: &[String]) -> Result<Arguments> {
        let threads = std::thread::available_parallelism().map_or(1, Into::into);
        let plan = Plan { prompt: vec![512], generate: 64, batch: 1, threads };
        let mut parsed = Arguments {
            model: PathBuf::new(),
            peer: String::new(),
            plan,
            rounds: 5,
            moeba: None,
            moeba_args: Vec::new(),
            peer_args: Vec::new(),
            svg: None,
            json: false,
        };
        let mut left = arguments.iter();
        while let Some(flag) = left.next() {
            if flag == "--json" {
                parsed.json = true;
                continue;
            }
            let value = left.next().with_context(|| format!("`{flag}` wants a value\n\n{HELP}"))?;
            parsed.set(flag, value)?;
        }
        ensure!(!parsed.model.as_os_str().is_empty(), "which model? (-m)\n\n{HELP}");
        ensure!(!parsed.peer.is_empty(), "which peer? (--peer)\n\n{HELP}");
        ensure!(parsed.rounds > 0 && parsed.plan.threads > 0, "rounds and threads begin at 1");
        Ok(parsed)
    }

    fn set(&mut self, flag: &str, value: &str) -> Result<()> {
        let number = |text: &str| {
            text.parse::<usize>().with_context(|| format!("`{text}` of `{flag}` is no number"))
        };
        let words = || value.split_whitespace().map(str::to_owned).collect();
        match flag {
            "-m" => self.model = value.into(),
            "--peer" => value.clone_into(&mut self.peer),
            "-p" => self.plan.prompt = value.split(',').map(number).collect::<Result<_>>()?,
            "-n" => self.plan.generate = number(value)?,
            "--batch" => self.plan.batch = number(value)?,
            "--rounds" => self.rounds = number(value)?,
            "-t" => self.plan.threads = number(value)?,
            "--moeba" => self.moeba = Some(value.into()),
            "--moeba-args" => self.moeba_args = words(),
            "--peer-args" => self.peer_args = words(),
            "--svg" => self.svg = Some(value.into()),
            other => bail!("unknown flag `{other}`\n\n{HELP}"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments> {
        Arguments::parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn flags_are_understood_or_refused() {
        let parsed = parse("-m a.gguf --peer x -p 8,20 -n 4 --batch 3 -t 2 --json").unwrap();
        assert_eq!(parsed.plan.prompt, [8, 20]);
        assert_eq!((parsed.plan.generate, parsed.plan.batch, parsed.plan.threads), (4, 3, 2));
        assert!(parsed.json && parsed.svg.is_none() && parsed.rounds == 5);
        let refused = ["-m a.gguf", "--peer x", "-m a --peer x -p", "-m a --peer x -n y", "-x 1"];
        assert!(refused.iter().all(|line| parse(line).is_err()));
    }
}
