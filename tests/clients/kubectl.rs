//! kubectl against a control plane without nodes, as transcripts: what a user types, and what they then see.
//!
//! A transcript is a text: a command after `$ `, below it all that it prints and, in brackets, an exit code other than 0.
//! `…` stands for any text: for what is different each time, and where versions of kubectl differ. Each transcript has a
//! namespace and a folder of its own.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::control_plane::ControlPlane;
use crate::script;

const COMMAND: &str = "$ ";
const ANYTHING: char = '…';
/// The minor version from which on kubectl knows all that is typed, and says it in these words.
const SPOKEN: u32 = 32;

#[test]
fn kubectl_says_what_its_users_know() {
    if minor_version().is_none_or(|minor| minor < SPOKEN) {
        println!("left out: kubectl 1.{SPOKEN} or later is not available here");
        return;
    }
    let control_plane = ControlPlane::start("kubectl");
    let transcripts = fs::read_dir(script("kubectl"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let complaints = std::thread::scope(|scope| {
        let played: Vec<_> = transcripts
            .map(|path| {
                let control_plane = &control_plane;
                scope.spawn(move || play(control_plane, &path))
            })
            .collect();
        assert!(!played.is_empty(), "there are no transcripts");
        played
            .into_iter()
            .flat_map(|player| player.join().unwrap())
            .collect::<Vec<_>>()
    });
    assert!(complaints.is_empty(), "{}", complaints.join("\n\n"));
}

/// 32 of `v1.32.4`.
fn minor_version() -> Option<u32> {
    let mut command = Command::new("kubectl");
    let output = command.args(["version", "--client", "-o", "json"]).output();
    let said: serde_json::Value = serde_json::from_slice(&output.ok()?.stdout).ok()?;
    let minor = said["clientVersion"]["minor"].as_str()?;
    minor.trim_end_matches('+').parse().ok()
}

/// Types the commands of a transcript; returns what came out otherwise.
fn play(control_plane: &ControlPlane, path: &Path) -> Vec<String> {
    let name = path.file_stem().unwrap().to_str().unwrap();
    let folder = control_plane.folder.join(name);
    fs::create_dir(&folder).unwrap();
    fs::copy(control_plane.kubeconfig(), folder.join("kubeconfig")).unwrap();
    let shell = |command: &str| {
        Command::new("sh")
            .args(["-c", &format!("exec 2>&1; {command}")])
            .current_dir(&folder)
            .env("KUBECONFIG", folder.join("kubeconfig"))
            .env("HOME", &folder)
            .output()
            .unwrap()
    };
    let ready = shell(&format!(
        "kubectl create namespace {name} && kubectl config set-context --current --namespace={name} &&
        kubectl wait --for=create serviceaccount/default --timeout=60s"
    ));
    assert!(
        ready.status.success(),
        "{}",
        String::from_utf8_lossy(&ready.stdout)
    );
    let mut complaints = Vec::new();
    for (command, expected) in parse(&fs::read_to_string(path).unwrap()) {
        let output = shell(&command);
        let mut said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() {
            let code = output.status.code().unwrap_or(-1);
            said = format!("{said}\n[{code}]").trim().to_owned();
        }
        if !fits(&expected, &said) {
            complaints.push(format!(
                "{name}: {command}\nexpected: {expected}\nsaid: {said}"
            ));
        }
    }
    complaints
}

/// The commands of a transcript, each with what it is to print. What stands above the first is for the reader.
fn parse(transcript: &str) -> Vec<(String, String)> {
    let mut steps: Vec<(String, String)> = Vec::new();
    for line in transcript.lines() {
        if let Some(command) = line.strip_prefix(COMMAND) {
            steps.push((command.to_owned(), String::new()));
        } else if let Some((_, expected)) = steps.last_mut() {
            expected.push_str(line);
            expected.push('\n');
        }
    }
    for (_, expected) in &mut steps {
        *expected = expected.trim().to_owned();
    }
    steps
}

fn fits(expected: &str, said: &str) -> bool {
    let Some((head, rest)) = expected.split_once(ANYTHING) else {
        return expected == said;
    };
    let Some(mut left) = said.strip_prefix(head) else {
        return false;
    };
    let (middle, tail) = rest.rsplit_once(ANYTHING).unwrap_or(("", rest));
    for piece in middle.split(ANYTHING) {
        let Some(at) = left.find(piece) else {
            return false;
        };
        left = &left[at + piece.len()..];
    }
    left.ends_with(tail)
}

#[test]
fn dots_stand_for_any_text() {
    assert!(fits("a…c…e", "abcde") && fits("…", "") && fits("a…", "a") && fits("a", "a"));
    assert!(!fits("a…c…e", "abce!") && !fits("a…a", "a") && !fits("a", "ab"));
    let steps = parse("a reader's line\n\n$ one\nthis\n[1]\n\n$ two\n");
    let step = |command: &str, expected: &str| (command.to_owned(), expected.to_owned());
    assert_eq!(steps, [step("one", "this\n[1]"), step("two", "")]);
}
