//! Tells the container runtime that pods can have a network here: the CNI configuration and the plugin.
//!
//! The configuration is written once the agent can answer, and not before: a runtime that sees it calls
//! the node ready. It stays when the agent stops, since a restart must not make the node unready; while
//! there is no agent the plugin itself says "try again later".
//!
//! On a node that has another CNI plugin, that one's configuration is put aside, and back when Windlass leaves.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;

/// The plugin's file name: by it the agent's binary knows that it is called as the plugin.
pub const PLUGIN: &str = "windlass-cni";

/// Runtimes take the first file in the folder by name; those of Calico, Flannel, Canal, kindnet and the like begin with 10.
const FILE: &str = "05-windlass.conflist";
/// What agents before this one called it.
const FORMER_FILE: &str = "10-windlass.conflist";

/// What runtimes read; anything else in the folder is nothing to them.
const READ: [&str; 3] = ["conf", "conflist", "json"];
/// Behind the name of a configuration that was put aside.
const ASIDE: &str = ".windlass-aside";
/// A plugin that calls the others, ours among them: it stays.
const CALLS_OTHERS: &str = "multus";

/// containerd 1.6 knows no later version; the plugin itself also speaks 1.1.0.
const VERSION: &str = "1.0.0";

/// Writes the configuration, in one step.
pub fn write(folder: &Path, socket: &Path) -> io::Result<()> {
    let configuration = json!({
        "cniVersion": VERSION,
        "name": "windlass",
        "plugins": [{
            "type": PLUGIN,
            "socket": socket,
            "capabilities": { "portMappings": true, "bandwidth": true },
        }],
    });
    let text = format!("{configuration:#}\n");
    let file = folder.join(FILE);
    // An agent that comes back on a full disk must not need to write: it is who makes room, by evicting pods.
    if fs::read(&file).ok().as_deref() != Some(text.as_bytes()) {
        fs::create_dir_all(folder)?;
        let new = folder.join(format!("{FILE}.{}.new", std::process::id()));
        fs::write(&new, text)?;
        fs::rename(new, file)?;
    }
    remove_file(&folder.join(FORMER_FILE))
}

/// Puts the configurations of other plugins aside; returns their names. To be done when ours is written.
pub fn put_others_aside(folder: &Path) -> io::Result<Vec<String>> {
    let mut aside = Vec::new();
    for name in names(folder)? {
        let is_read = Path::new(&name)
            .extension()
            .is_some_and(|extension| READ.iter().any(|read| extension == *read));
        let file = folder.join(&name);
        if !is_read || name == FILE || calls_others(&file) {
            continue;
        }
        fs::rename(&file, folder.join(format!("{name}{ASIDE}")))?;
        aside.push(name);
    }
    Ok(aside)
}

/// Undoes that, but for those that their owner has written anew. To be done while ours is still there.
pub(crate) fn put_others_back(folder: &Path) -> io::Result<()> {
    for name in names(folder)? {
        let Some(former) = name.strip_suffix(ASIDE) else {
            continue;
        };
        if folder.join(former).exists() {
            remove_file(&folder.join(&name))?;
        } else {
            fs::rename(folder.join(&name), folder.join(former))?;
        }
    }
    Ok(())
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

/// Whether one of the plugins in a configuration is one that calls others.
fn calls_others(file: &Path) -> bool {
    let text = fs::read(file).unwrap_or_default();
    let conf: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let mut plugins = conf["plugins"].as_array().into_iter().flatten();
    conf["type"] == CALLS_OTHERS || plugins.any(|plugin| plugin["type"] == CALLS_OTHERS)
}

/// Removes it, as part of taking Windlass off a node.
pub fn remove(folder: &Path) -> io::Result<()> {
    put_others_back(folder)?;
    remove_file(&folder.join(FORMER_FILE))?;
    remove_file(&folder.join(FILE))
}

/// Removes the plugin, as part of the same.
pub fn remove_plugin(folder: &Path) -> io::Result<()> {
    remove_file(&folder.join(PLUGIN))
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Puts the plugin, which is this program under another name, where the runtime looks for it. In one step,
/// since a runtime may be starting it at this moment; the one that is there is kept when it is the same.
pub fn install_plugin(folder: &Path) -> io::Result<()> {
    let program = std::env::current_exe()?;
    fs::create_dir_all(folder)?;
    let plugin = folder.join(PLUGIN);
    let new = folder.join(format!("{PLUGIN}.{}.new", std::process::id()));
    if is_same(&program, &plugin)? {
        return Ok(());
    }
    // A link costs nothing; a container's image lies on another file system, so there it is a copy.
    if fs::hard_link(&program, &new).is_err() {
        fs::copy(&program, &new)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    }
    fs::rename(new, plugin)
}

fn is_same(program: &Path, plugin: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let Ok(installed) = fs::metadata(plugin) else {
        return Ok(false);
    };
    let program = fs::metadata(program)?;
    let same_file = (program.dev(), program.ino()) == (installed.dev(), installed.ino());
    Ok(same_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_the_plugin_and_its_socket() {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), Path::new("/run/windlass/agent.sock")).expect("write");
        write(folder.path(), Path::new("/run/windlass/agent.sock")).expect("write again");
        let names: Vec<_> = fs::read_dir(folder.path())
            .expect("list")
            .map(|entry| {
                entry
                    .expect("entry")
                    .file_name()
                    .into_string()
                    .expect("text")
            })
            .collect();
        assert_eq!(names, [FILE]);
        let text = fs::read(folder.path().join(FILE)).expect("read");
        let value: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(value["plugins"][0]["type"], "windlass-cni");
        assert_eq!(value["plugins"][0]["socket"], "/run/windlass/agent.sock");
        let in_the_way = format!("{FILE}.{}.new", std::process::id());
        fs::create_dir(folder.path().join(&in_the_way)).expect("a folder");
        write(folder.path(), Path::new("/run/windlass/agent.sock")).expect("nothing to write");
        write(folder.path(), Path::new("/run/other.sock")).expect_err("something to write");
        fs::remove_dir(folder.path().join(in_the_way)).expect("remove");
        remove(folder.path()).expect("remove");
        remove(folder.path()).expect("remove again");
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 0);
    }

    #[test]
    fn other_plugins_stand_aside_as_long_as_windlass_is_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let put =
            |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("write");
        let listed = || names(folder.path()).expect("list");
        let calico = r#"{"name": "k8s-pod-network", "plugins": [{"type": "calico"}]}"#;
        let multus = r#"{"name": "multus", "type": "multus"}"#;
        put("10-calico.conflist", calico);
        put("10-flannel.conflist", "{");
        put("00-multus.conf", multus);
        put("10-windlass.conflist", "of an older agent");
        put("calico-kubeconfig", "read by nobody here");
        write(folder.path(), Path::new("/run/agent.sock")).expect("write");
        let aside = put_others_aside(folder.path()).expect("aside");
        assert_eq!(aside, ["10-calico.conflist", "10-flannel.conflist"]);
        let now = [
            "00-multus.conf",
            FILE,
            "10-calico.conflist.windlass-aside",
            "10-flannel.conflist.windlass-aside",
            "calico-kubeconfig",
        ];
        assert_eq!(listed(), now);
        assert_eq!(put_others_aside(folder.path()).expect("again"), [""; 0]);

        // Its owner still runs and has written it anew.
        put("10-flannel.conflist", "{}");
        remove(folder.path()).expect("remove");
        let then = [
            "00-multus.conf",
            "10-calico.conflist",
            "10-flannel.conflist",
            "calico-kubeconfig",
        ];
        assert_eq!(listed(), then);
        let back = fs::read_to_string(folder.path().join("10-calico.conflist"));
        assert_eq!(back.expect("read"), calico);
        let anew = fs::read_to_string(folder.path().join("10-flannel.conflist"));
        assert_eq!(anew.expect("read"), "{}");
    }

    #[test]
    fn the_plugin_is_this_program() {
        let folder = tempfile::tempdir().expect("a folder");
        let plugin = folder.path().join(PLUGIN);
        fs::write(&plugin, "an older one").expect("write");
        install_plugin(folder.path()).expect("install");
        let program = std::env::current_exe().expect("this program");
        assert_eq!(
            fs::metadata(&plugin).expect("plugin").len(),
            fs::metadata(program).expect("program").len()
        );
        assert_eq!(
            fs::metadata(&plugin).expect("plugin").permissions().mode() & 0o111,
            0o111
        );
        install_plugin(folder.path()).expect("install again");
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 1);
        remove_plugin(folder.path()).expect("remove");
        remove_plugin(folder.path()).expect("remove again");
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 0);
    }
}
