//! An agent as a process of its own: one that can be killed at any moment, in the middle of whatever it does.

use std::{
    env,
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;
use windlass_datapath::{Capacities, DatapathConfig, PodInterface};

use crate::world::{World, attach, small};

const ARGUMENTS: &str = "WINDLASS_TEST_AGENT";
const ENTRY: &str = "agent_process::an_agent_until_it_is_killed";
const READY: &str = "the agent is ready";

pub struct AgentProcess(Child);

impl AgentProcess {
    /// Begins to start; the world's own agent is to have stopped.
    pub fn start(world: &World) -> Self {
        let program = env::current_exe().expect("the path of this program");
        let arguments = ["--exact", ENTRY, "--ignored", "--nocapture"];
        let child = world.node.run(|| {
            Command::new(program)
                .args(arguments)
                .env(ARGUMENTS, world.agent_arguments().to_string())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
        });
        Self(child.expect("starting a process"))
    }

    /// Everything is attached, and what another layout left is taken over.
    pub fn ready(mut self) -> Self {
        let output = self.0.stdout.take().expect("it is piped");
        let mut lines = BufReader::new(output).lines();
        let ready = lines.any(|line| line.expect("its output").contains(READY));
        assert!(ready, "the agent ended: {:?}", self.0.wait());
        self
    }

    /// `kill -9`
    pub fn kill(mut self) {
        self.0.kill().expect("killing it");
        self.0.wait().expect("waiting for its end");
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the process does.
#[test]
#[ignore = "not a test: other tests start it, and kill it"]
fn an_agent_until_it_is_killed() {
    let Ok(arguments) = env::var(ARGUMENTS) else {
        return;
    };
    let arguments: Value = serde_json::from_str(&arguments).expect("its arguments");
    let text = |of: &Value| of.as_str().expect("a text").to_owned();
    let number = |of: &Value| u32::try_from(of.as_u64().expect("a number")).expect("a small one");
    let pod = |pod: &Value| PodInterface {
        name: text(&pod["name"]),
        addresses: serde_json::from_value(pod["addresses"].clone()).expect("addresses"),
        mac: serde_json::from_value(pod["mac"].clone()).expect("an Ethernet address"),
        netns: serde_json::from_value(pod["netns"].clone()).expect("a path, or none"),
        limited: false,
    };
    let pods: Vec<PodInterface> = arguments["pods"]
        .as_array()
        .expect("a list")
        .iter()
        .map(pod)
        .collect();
    let mut config = DatapathConfig::new(text(&arguments["bpffs"]));
    config.layout = number(&arguments["layout"]);
    config.capacities = Capacities {
        conntrack: number(&arguments["conntrack"]),
        ..small()
    };
    let cgroup = text(&arguments["cgroup"]);
    let pods: Vec<&PodInterface> = pods.iter().collect();
    let datapath = attach(config, cgroup.as_ref(), &pods);
    // It goes with who started it, too.
    thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    println!("{READY}");
    loop {
        datapath.collect_garbage().expect("collecting");
        thread::park_timeout(Duration::from_secs(1));
    }
}
