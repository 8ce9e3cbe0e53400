//! Why a call to the runtime failed, in the terms in which callers decide.

use std::time::Duration;

use tonic::{Code, Status};

/// A call's failure. Every variant names the call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The endpoint given by the user is not a unix socket's address.
    #[error("runtime endpoint {endpoint:?}: expected unix:///path or /path")]
    Endpoint {
        /// As it was given.
        endpoint: String,
    },
    /// Nobody listens, or the connection broke; the runtime may be restarting.
    #[error("{call}: the container runtime is not reachable: {message}")]
    Unreachable {
        /// The CRI method.
        call: &'static str,
        /// What the transport said.
        message: String,
    },
    /// The runtime did not answer in time; whether it acted is not known.
    #[error("{call}: no answer from the container runtime within {}s", deadline.as_secs_f32())]
    Deadline {
        /// The CRI method.
        call: &'static str,
        /// How long it was waited.
        deadline: Duration,
    },
    /// The sandbox, container or image does not exist.
    #[error("{call}: {message}")]
    NotFound {
        /// The CRI method.
        call: &'static str,
        /// The runtime's words.
        message: String,
    },
    /// The runtime is too old for this call.
    #[error("{call}: this container runtime does not serve it")]
    Unsupported {
        /// The CRI method.
        call: &'static str,
    },
    /// The runtime understood and could not or would not do it.
    #[error("{call}: {message}")]
    Refused {
        /// The CRI method.
        call: &'static str,
        /// The gRPC code.
        code: Code,
        /// The runtime's words.
        message: String,
    },
}

impl Error {
    pub(crate) fn from_status(call: &'static str, deadline: Duration, status: Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::Unavailable => Self::Unreachable { call, message },
            Code::DeadlineExceeded => Self::Deadline { call, deadline },
            Code::NotFound => Self::NotFound { call, message },
            Code::Unimplemented => Self::Unsupported { call },
            // tonic reports a connection that broke under a call as Unknown or Cancelled
            // with a transport error as its source.
            Code::Unknown | Code::Cancelled if is_transport(&status) => {
                Self::Unreachable { call, message }
            }
            // containerd 1.6 answers Unknown for many of its own "not found" errors.
            Code::Unknown if message.ends_with("not found") => Self::NotFound { call, message },
            code => Self::Refused {
                call,
                code,
                message,
            },
        }
    }

    /// The object is gone or never was.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// The runtime is away; what was asked may be asked again later.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// The runtime's words without the name of the call, for users' eyes.
    pub fn message(&self) -> String {
        match self {
            Self::NotFound { message, .. }
            | Self::Refused { message, .. }
            | Self::Unreachable { message, .. } => message.clone(),
            other => other.to_string(),
        }
    }
}

fn is_transport(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::transport::Error>() || error.is::<std::io::Error>() {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_become_what_callers_decide_on() {
        let of = |code, message: &str| {
            Error::from_status("Call", Duration::from_secs(1), Status::new(code, message))
        };
        assert!(of(Code::NotFound, "no such container").is_not_found());
        assert!(of(Code::Unknown, "sandbox \"a\": not found").is_not_found());
        assert!(of(Code::Unavailable, "connect").is_unreachable());
        assert!(matches!(
            of(Code::Unimplemented, ""),
            Error::Unsupported { .. }
        ));
        assert!(matches!(
            of(Code::DeadlineExceeded, ""),
            Error::Deadline { .. }
        ));
        let refused = of(Code::Unknown, "failed to create shim");
        assert!(matches!(refused, Error::Refused { .. }));
        assert_eq!(refused.message(), "failed to create shim");
    }
}
