//! Errors as CNI wants them: a well-known code, a message, details.

use serde_json::{Value, json};

/// The specification's codes; those from 100 on are a plugin's own.
const INCOMPATIBLE_VERSION: u32 = 1;
const UNKNOWN_CONTAINER: u32 = 3;
const INVALID_ENVIRONMENT: u32 = 4;
const IO_FAILURE: u32 = 5;
const DECODING_FAILURE: u32 = 6;
const INVALID_CONFIG: u32 = 7;
const TRY_AGAIN_LATER: u32 = 11;
const NOT_AVAILABLE: u32 = 50;
const INTERNAL: u32 = 999;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CniError {
    pub code: u32,
    pub message: String,
}

impl CniError {
    fn new(code: u32, message: &str) -> Self {
        Self {
            code,
            message: message.to_owned(),
        }
    }

    pub(crate) fn incompatible_version(version: &str) -> Self {
        let spoken = crate::VERSIONS.join(", ");
        let message = format!("CNI version {version:?} is not one of {spoken}");
        Self::new(INCOMPATIBLE_VERSION, &message)
    }

    pub(crate) fn environment(message: &str) -> Self {
        Self::new(INVALID_ENVIRONMENT, message)
    }

    pub(crate) fn io(message: &str) -> Self {
        Self::new(IO_FAILURE, message)
    }

    pub(crate) fn decoding(message: &str) -> Self {
        Self::new(DECODING_FAILURE, message)
    }

    pub(crate) fn config(message: &str) -> Self {
        Self::new(INVALID_CONFIG, message)
    }

    pub(crate) fn internal(message: &str) -> Self {
        Self::new(INTERNAL, message)
    }

    /// The agent cannot be reached: nothing is wrong with the request, so the runtime shall repeat it.
    pub(crate) fn no_agent(socket: &str, detail: &str) -> Self {
        let message = format!(
            "the node agent does not answer on {socket}: is windlass-node-agent running? ({detail})"
        );
        Self::new(TRY_AGAIN_LATER, &message)
    }

    /// What the agent answered.
    pub(crate) fn from_agent(status: &tonic::Status) -> Self {
        let code = match status.code() {
            tonic::Code::InvalidArgument => INVALID_CONFIG,
            tonic::Code::NotFound => UNKNOWN_CONTAINER,
            tonic::Code::Unavailable
            | tonic::Code::ResourceExhausted
            | tonic::Code::DeadlineExceeded => TRY_AGAIN_LATER,
            _ => INTERNAL,
        };
        Self::new(code, status.message())
    }

    /// STATUS has a code of its own for "cannot serve ADD now".
    pub(crate) fn for_status(self) -> Self {
        if self.code == TRY_AGAIN_LATER {
            Self {
                code: NOT_AVAILABLE,
                ..self
            }
        } else {
            self
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            // The version of the error's own shape, which has never changed.
            "cniVersion": "1.0.0",
            "code": self.code,
            "msg": self.message,
        })
    }
}
