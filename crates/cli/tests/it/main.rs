//! The `moeba` command as its users meet it: child processes, their words, files and exit codes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod chat;
mod containers;
mod damage;
mod fit;
mod help;
mod hostile;
mod list;
mod numbers;
mod pull;
mod quantising;
mod run;
mod tiny;
mod verify;
mod world;
