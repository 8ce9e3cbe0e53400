//! A part of a measurement in a process of its own: orders go in as lines of JSON, answers come out so.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::pause;

pub struct Worker {
    name: String,
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts this program in another role. It is in each of `cgroups` before its first instruction: a socket
    /// and a kernel allocation belong to the cgroup of the moment in which they are made.
    pub fn start(role: &str, arguments: &[String], cgroups: &[PathBuf]) -> Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut child = in_cgroups(cgroups, &program)
            .arg(role)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting the {role}"))?;
        let orders = child.stdin.take();
        let answers = child.stdout.take().context("the worker's output")?;
        Ok(Self {
            name: role.to_owned(),
            child,
            orders,
            answers: BufReader::new(answers),
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn ask<T: DeserializeOwned>(&mut self, order: &impl Serialize) -> Result<T> {
        self.send(order)?;
        self.receive()
    }

    pub fn send(&mut self, order: &impl Serialize) -> Result<()> {
        let orders = self.orders.as_mut().context("the worker was stopped")?;
        writeln!(orders, "{}", serde_json::to_string(order)?)
            .with_context(|| format!("giving the {} an order", self.name))
    }

    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.is_empty() {
            bail!("the {} ended; its reason is above", self.name);
        }
        let answer: Result<T, String> = serde_json::from_str(&line)
            .with_context(|| format!("the {} answered {line}", self.name))?;
        answer.map_err(|error| anyhow::anyhow!("{}: {error}", self.name))
    }
}

impl Drop for Worker {
    /// Its end of input tells it to stop; it is not waited for longer than it takes.
    fn drop(&mut self) {
        self.orders = None;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while matches!(self.child.try_wait(), Ok(None)) {
            if std::time::Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            pause::between_looks(std::time::Duration::from_millis(5));
        }
    }
}

/// A command that enters the cgroups, then becomes the program.
pub fn in_cgroups(cgroups: &[PathBuf], program: &Path) -> Command {
    let mut shell = Command::new("sh");
    let script = "while [ \"$1\" != -- ]; do echo $$ >\"$1/cgroup.procs\" || exit 1; shift; done; shift; exec \"$@\"";
    shell.args(["-c", script, "sh"]);
    shell.args(cgroups).arg("--").arg(program);
    shell
}

/// The worker's side: answers each order until there are no more.
pub fn serve<O: DeserializeOwned, A: Serialize>(
    mut handle: impl FnMut(O) -> Result<A>,
) -> Result<()> {
    for line in std::io::stdin().lines() {
        let order = serde_json::from_str(&line?).context("an order")?;
        let answer = handle(order).map_err(|error| format!("{error:#}"));
        println!("{}", serde_json::to_string(&answer)?);
    }
    Ok(())
}

/// Puts the calling thread, and every thread that it will start, into a network namespace.
pub fn enter_netns(path: &Path) -> Result<()> {
    let file = std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)
        .context("entering the network namespace")
}

/// A clock that every process of this machine agrees on, in nanoseconds. It may be set while a measurement runs;
/// the two readings of one are milliseconds apart.
pub fn shared_nanoseconds() -> u64 {
    let since = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap_or_default();
    since.as_nanos() as u64
}
