//! Containers' logs: rotation of what grows, and the end of what a failed container said.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use windlass_cri::Runtime;

/// How much of a log may serve as last words.
const TAIL_LINES: usize = 80;
const TAIL_BYTES: u64 = 2048;

/// Puts a running container's log aside if it is larger than `max_bytes`, has the runtime
/// begin a new one, and removes the oldest so that `max_files` remain.
pub(crate) async fn rotate(
    runtime: &Runtime,
    container_id: &str,
    path: &Path,
    max_bytes: u64,
    max_files: usize,
) -> io::Result<bool> {
    if fs::metadata(path)?.len() <= max_bytes {
        return Ok(false);
    }
    let stamp = Timestamp::now().strftime("%Y%m%d-%H%M%S.%6f");
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".{stamp}"));
    let aside = PathBuf::from(aside);
    fs::rename(path, &aside)?;
    if let Err(error) = runtime.reopen_container_log(container_id).await {
        // The runtime still writes into the renamed file: put it back for the next try.
        fs::rename(&aside, path)?;
        return Err(io::Error::other(error));
    }
    let mut old = rotated(path)?;
    let surplus = old.len().saturating_sub(max_files.saturating_sub(1));
    for path in old.drain(..surplus) {
        fs::remove_file(path)?;
    }
    Ok(true)
}

/// Removes one run's log with what was put aside of it.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    for old in rotated(path)? {
        fs::remove_file(old)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What was put aside of a log, the oldest first.
fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut found = Vec::new();
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            found.push(entry.path());
        }
    }
    // The stamps sort by time.
    found.sort();
    Ok(found)
}

/// The last lines of a log without the runtime's prefixes.
pub(crate) fn tail(path: &Path) -> Option<String> {
    let mut file = fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    // Each line carries a prefix of some 40 bytes that does not count.
    let from = length.saturating_sub(TAIL_BYTES * 4);
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<&str> = text.lines().collect();
    if from > 0 && !lines.is_empty() {
        lines.remove(0);
    }
    let keep = lines.len().saturating_sub(TAIL_LINES);
    let mut out = String::new();
    for line in &lines[keep..] {
        let mut parts = line.splitn(4, ' ');
        let (tag, content) = (
            parts.nth(2).unwrap_or("F"),
            parts.next().unwrap_or_default(),
        );
        out.push_str(content);
        if tag == "F" {
            out.push('\n');
        }
    }
    let limit = usize::try_from(TAIL_BYTES).unwrap_or(usize::MAX);
    let start = (out.len().saturating_sub(limit)..out.len()).find(|at| out.is_char_boundary(*at));
    Some(out[start.unwrap_or(0)..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_what_was_said() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("0.log");
        let lines: String = (0..200)
            .map(|n| format!("2026-01-01T00:00:00.000000000Z stderr F line {n}\n"))
            .collect();
        fs::write(&path, lines + "2026-01-01T00:00:00.0Z stderr P half").unwrap();
        let tail = tail(&path).unwrap();
        assert!(tail.ends_with("line 199\nhalf"));
        assert!(!tail.contains("stderr"));
        assert!(tail.lines().count() <= TAIL_LINES && tail.len() <= 2048);
    }

    #[test]
    fn a_logs_rotated_files_go_with_it_and_only_they() {
        let root = tempfile::tempdir().unwrap();
        for name in ["0.log", "0.log.20260101-000000.000000", "10.log"] {
            fs::write(root.path().join(name), "x").unwrap();
        }
        remove(&root.path().join("0.log")).unwrap();
        let left: Vec<_> = fs::read_dir(root.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(left, ["10.log"]);
        remove(&root.path().join("absent/0.log")).unwrap();
    }
}
