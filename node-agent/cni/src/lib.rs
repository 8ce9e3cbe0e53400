//! The CNI plugin: what the container runtime starts for every sandbox, a thin client of the node agent.
//!
//! It knows the CNI protocol (environment and JSON in, JSON and an exit code out; specification 0.4.0 to
//! 1.1.0) and nothing about networks: the agent makes the interface, over its unix socket, where it has the
//! state and the privileges. So the plugin starts in a millisecond, and it cannot disagree with the agent.
//!
//! The program is the agent's own binary under another name; [`main`] is its entry then.

mod agent;
mod config;
mod error;
mod invocation;
mod result;

use std::io::{Read, Write};
use std::process::ExitCode;

pub use self::error::CniError;
pub use self::invocation::{Command, Invocation};

/// Versions of the protocol that are spoken, oldest first.
pub(crate) const VERSIONS: [&str; 3] = ["0.4.0", "1.0.0", "1.1.0"];

/// The plugin as a program: environment and standard input in, standard output and exit code out.
pub fn main() -> ExitCode {
    let mut input = Vec::new();
    let outcome = std::io::stdin()
        .read_to_end(&mut input)
        .map_err(|error| CniError::io(&format!("standard input cannot be read: {error}")))
        .and_then(|_| Invocation::from_environment(|name| std::env::var(name).ok(), input));
    let outcome = outcome.and_then(|invocation| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| CniError::internal(&format!("no runtime: {error}")))?;
        runtime.block_on(run(&invocation))
    });
    let (output, code) = match outcome {
        Ok(output) => (output, ExitCode::SUCCESS),
        // The specification wants errors on standard output too.
        Err(error) => (Some(error.to_json()), ExitCode::FAILURE),
    };
    let Some(output) = output else { return code };
    match writeln!(std::io::stdout(), "{output}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Carries out one invocation. `Ok(None)`: it succeeded and has nothing to print.
pub async fn run(invocation: &Invocation) -> Result<Option<serde_json::Value>, CniError> {
    if invocation.command == Command::Version {
        return Ok(Some(result::versions()));
    }
    let config = config::Config::parse(&invocation.input)?;
    match invocation.command {
        Command::Add => agent::add(invocation, &config).await.map(Some),
        Command::Del => agent::del(invocation, &config).await.map(|()| None),
        Command::Check => agent::check(invocation, &config).await.map(|()| None),
        Command::Status => agent::status(&config).await.map(|()| None),
        Command::Gc => agent::gc(&config).await.map(|()| None),
        Command::Version => Ok(Some(result::versions())),
    }
}
