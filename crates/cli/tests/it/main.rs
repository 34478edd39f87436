//! The `moeba` command as its users meet it: child processes, their words, files and exit codes.

mod help;
mod list;
mod pull;
mod world;
