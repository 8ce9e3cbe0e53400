//! The node's own log files, as a kubelet shows them: `/logs/` is the folder `/var/log`, listed and read.
//!
//! Containers may have written there (whoever mounts the folder), so links are followed only as long as they stay in it.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use tokio::io::AsyncReadExt;

use crate::respond::{self, Body, Refusal};

/// Where a node's services write.
pub(crate) const FOLDER: &str = "/var/log";

const CHUNK: usize = 64 << 10;
const HTML: &str = "text/html; charset=utf-8";

/// Answers for a path below the folder; `parts` end with an empty one if the path ended with a slash.
pub(crate) async fn answer(folder: &Path, parts: &[&str]) -> Result<Response<Body>, Refusal> {
    if parts.contains(&"..") {
        return Err(Refusal::bad_request("invalid URL path"));
    }
    let names: Vec<&str> = parts
        .iter()
        .copied()
        .filter(|part| !part.is_empty())
        .collect();
    let (folder, path) = (folder.to_owned(), names.join("/"));
    let opened = tokio::task::spawn_blocking(move || open(&folder, &path)).await;
    let opened = opened.map_err(|error| Refusal::internal(error.to_string()))?;
    let file = opened.map_err(refusal)?;
    let is_folder = file.metadata().map_err(refusal)?.is_dir();
    let slash = parts.last().is_none_or(|part| part.is_empty());
    match is_folder {
        true if !slash => Ok(elsewhere(&format!("{}/", parts.last().unwrap_or(&"")))),
        true => {
            let page = tokio::task::spawn_blocking(move || list(&file)).await;
            let page = page.map_err(|error| Refusal::internal(error.to_string()))?;
            Ok(respond::with_type(HTML, page.map_err(refusal)?))
        }
        false => Ok(content(file)),
    }
}

fn open(folder: &Path, path: &str) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let root = openat2(AT_FDCWD, folder, OpenHow::new().flags(flags))?;
    let beneath = OpenHow::new()
        .flags(flags)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let path = if path.is_empty() { "." } else { path };
    let file: OwnedFd = match openat2(&root, path, beneath) {
        Err(Errno::EXDEV | Errno::ELOOP) => return Err(io::ErrorKind::PermissionDenied.into()),
        other => other?,
    };
    let file = File::from(file);
    let kind = file.metadata()?.file_type();
    // A pipe or device would never end.
    match kind.is_dir() || kind.is_file() {
        true => Ok(file),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

fn refusal(error: io::Error) -> Refusal {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            Refusal::not_found("404 page not found")
        }
        io::ErrorKind::PermissionDenied => Refusal::new(StatusCode::FORBIDDEN, "403 Forbidden"),
        _ => Refusal::internal(error.to_string()),
    }
}

/// As a web server shows a folder.
fn list(folder: &File) -> io::Result<String> {
    use std::os::fd::AsRawFd;
    let mut names = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()))? {
        let entry = entry?;
        let mut name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            name.push('/');
        }
        names.push(name);
    }
    names.sort();
    let mut page = String::from("<!doctype html>\n<pre>\n");
    for name in names {
        let (link, text) = (link(&name), escaped(&name));
        // Writing into a string cannot fail.
        let _ = writeln!(page, "<a href=\"{link}\">{text}</a>");
    }
    page.push_str("</pre>\n");
    Ok(page)
}

fn link(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    name.bytes().fold(String::new(), |mut link, byte| {
        match plain(byte) {
            true => link.push(char::from(byte)),
            false => {
                let _ = write!(link, "%{byte:02X}");
            }
        }
        link
    })
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&#34;")
}

fn elsewhere(place: &str) -> Response<Body> {
    let mut response = respond::text("");
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(place) = HeaderValue::from_str(&link(place)) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    response
}

fn content(file: File) -> Response<Body> {
    let file = tokio::fs::File::from_std(file);
    let frames = futures::stream::try_unfold(file, |mut file| async {
        let mut chunk = vec![0; CHUNK];
        let read = file.read(&mut chunk).await?;
        chunk.truncate(read);
        let frame = Frame::data(Bytes::from(chunk));
        Ok::<_, io::Error>((read > 0).then_some((frame, file)))
    });
    let mut response = respond::text("");
    *response.body_mut() = StreamBody::new(frames).boxed_unsync();
    response
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    async fn asked(folder: &Path, parts: &[&str]) -> (u16, String) {
        match answer(folder, parts).await {
            Ok(response) => {
                let status = response.status().as_u16();
                let place = response.headers().get(header::LOCATION).cloned();
                let body = response.into_body().collect().await.unwrap().to_bytes();
                let text = String::from_utf8(body.to_vec()).unwrap();
                let place = place.map(|place| place.to_str().unwrap().to_owned());
                (status, place.unwrap_or(text))
            }
            Err(refusal) => (refusal.status.as_u16(), refusal.text),
        }
    }

    #[tokio::test]
    async fn files_are_read_folders_listed_and_nothing_outside_is_shown() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("log");
        fs::create_dir_all(folder.join("deep er")).unwrap();
        fs::write(folder.join("a<b.log"), "said").unwrap();
        fs::write(folder.join("deep er/x"), "y".repeat(CHUNK + 1)).unwrap();
        fs::write(root.path().join("secret"), "s").unwrap();
        symlink("../secret", folder.join("up")).unwrap();
        symlink("/etc/hostname", folder.join("away")).unwrap();
        symlink("a<b.log", folder.join("near")).unwrap();

        let (status, page) = asked(&folder, &[""]).await;
        assert_eq!(status, 200);
        assert!(
            page.contains("<a href=\"a%3Cb.log\">a&lt;b.log</a>\n"),
            "{page}"
        );
        assert!(
            page.contains("<a href=\"deep%20er/\">deep er/</a>"),
            "{page}"
        );
        assert_eq!(asked(&folder, &["a<b.log"]).await, (200, "said".into()));
        assert_eq!(asked(&folder, &["near"]).await, (200, "said".into()));
        assert_eq!(
            asked(&folder, &["deep er"]).await,
            (301, "deep%20er/".into())
        );
        assert_eq!(asked(&folder, &["deep er", "x"]).await.1.len(), CHUNK + 1);
        assert_eq!(asked(&folder, &["none"]).await.0, 404);
        assert_eq!(asked(&folder, &["..", "secret"]).await.0, 400);
        for link in ["up", "away"] {
            assert_eq!(asked(&folder, &[link]).await.0, 403, "{link}");
        }
    }
}
