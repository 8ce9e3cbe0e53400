//! Tells the container runtime that pods can have a network here: the CNI configuration and the plugin.
//!
//! The configuration is written once the agent can answer, and not before: a runtime that sees it calls
//! the node ready. It stays when the agent stops, since a restart must not make the node unready; while
//! there is no agent the plugin itself says "try again later".

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;

/// The plugin's file name: by it the agent's binary knows that it is called as the plugin.
pub const PLUGIN: &str = "windlass-cni";

/// Runtimes take the first file in the folder by name.
const FILE: &str = "10-windlass.conflist";

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
    fs::create_dir_all(folder)?;
    let new = folder.join(format!("{FILE}.{}.new", std::process::id()));
    fs::write(&new, format!("{configuration:#}\n"))?;
    fs::rename(new, folder.join(FILE))
}

/// Removes it, as part of taking Windlass off a node.
pub fn remove(folder: &Path) -> io::Result<()> {
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
        remove(folder.path()).expect("remove");
        remove(folder.path()).expect("remove again");
        assert_eq!(fs::read_dir(folder.path()).expect("list").count(), 0);
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
