//! A command in the container; 0 is success.

use std::time::Duration;

use windlass_cri::{Error, Runtime};

/// How much of the output is worth telling.
const OUTPUT_MOST: usize = 10 * 1024;

pub(super) async fn probe(
    runtime: &Runtime,
    container_id: &str,
    command: &[String],
    timeout: Duration,
) -> Result<(), String> {
    match runtime.exec_sync(container_id, command, timeout).await {
        Ok(output) if output.exit_code == 0 => Ok(()),
        Ok(output) => {
            let mut text = output.stdout;
            text.extend(output.stderr);
            text.truncate(OUTPUT_MOST);
            Err(String::from_utf8_lossy(&text).into_owned())
        }
        Err(Error::Deadline { .. }) => Err(format!(
            "command timed out: {command:?} timed out after {}s",
            timeout.as_secs()
        )),
        Err(error) => Err(error.to_string()),
    }
}
