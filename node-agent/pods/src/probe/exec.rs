//! A command in the container; 0 is success.

use std::time::Duration;

use windlass_cri::{Error, Runtime};
use windlass_machinery::time::format_duration;

use super::Problem;

/// How much of the output is worth telling.
const OUTPUT_MOST: usize = 10 * 1024;

pub(super) async fn probe(
    runtime: &Runtime,
    container_id: &str,
    command: &[String],
    timeout: Duration,
) -> Result<(), Problem> {
    match runtime.exec_sync(container_id, command, timeout).await {
        Ok(output) if output.exit_code == 0 => Ok(()),
        Ok(output) => {
            let mut text = output.stdout;
            text.extend(output.stderr);
            text.truncate(OUTPUT_MOST);
            let text = String::from_utf8_lossy(&text).into_owned();
            Err(Problem::Failed(text))
        }
        Err(Error::Deadline { .. }) => Err(Problem::Failed(format!(
            "command timed out: {:?} timed out after {}",
            command.join(" "),
            format_duration(i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX))
        ))),
        // That the command could not be run says nothing of the container.
        Err(error) => Err(Problem::Unknown(error.message())),
    }
}
