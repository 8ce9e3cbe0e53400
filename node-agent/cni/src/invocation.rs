//! What the runtime asks for: the `CNI_*` environment variables beside the configuration on standard input.

use crate::CniError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

/// One call of the plugin. Variables that a command does not need are empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    pub command: Command,
    pub container_id: String,
    pub netns: String,
    pub interface: String,
    /// `K8S_POD_NAMESPACE` and its kind, in their order.
    pub arguments: Vec<(String, String)>,
    /// The network configuration, JSON.
    pub input: Vec<u8>,
}

impl Invocation {
    /// Reads the variables that the command needs.
    pub fn from_environment(
        variable: impl Fn(&str) -> Option<String>,
        input: Vec<u8>,
    ) -> Result<Self, CniError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let required = |name: &str| {
            variable(name).ok_or_else(|| CniError::environment(&format!("{name} is not set")))
        };
        let command = match required("CNI_COMMAND")?.as_str() {
            "ADD" => Command::Add,
            "DEL" => Command::Del,
            "CHECK" => Command::Check,
            "STATUS" => Command::Status,
            "GC" => Command::Gc,
            "VERSION" => Command::Version,
            other => {
                return Err(CniError::environment(&format!(
                    "CNI_COMMAND {other:?} is unknown"
                )));
            }
        };
        let of_a_container = matches!(command, Command::Add | Command::Del | Command::Check);
        let needed = |name, is_needed: bool| {
            if is_needed {
                required(name)
            } else {
                Ok(variable(name).unwrap_or_default())
            }
        };
        Ok(Self {
            command,
            container_id: needed("CNI_CONTAINERID", of_a_container)?,
            // DEL comes without it when the namespace is gone already.
            netns: needed(
                "CNI_NETNS",
                matches!(command, Command::Add | Command::Check),
            )?,
            interface: needed("CNI_IFNAME", of_a_container)?,
            arguments: arguments(&variable("CNI_ARGS").unwrap_or_default()),
            input,
        })
    }

    pub(crate) fn argument(&self, name: &str) -> String {
        let found = self.arguments.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    }
}

/// `A=1;B=2`; what has no `=` is passed over, as runtimes add to it freely.
fn arguments(text: &str) -> Vec<(String, String)> {
    text.split(';')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invocation(variables: &[(&str, &str)]) -> Result<Invocation, CniError> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Invocation::from_environment(variable, Vec::new())
    }

    #[test]
    fn each_command_demands_its_variables() {
        let all = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "abc"),
            ("CNI_NETNS", "/run/netns/x"),
            ("CNI_IFNAME", "eth0"),
            (
                "CNI_ARGS",
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=web;K8S_POD_NAME=web-0",
            ),
        ];
        let add = invocation(&all).expect("is complete");
        assert_eq!(add.argument("K8S_POD_NAMESPACE"), "web");
        assert_eq!(add.argument("K8S_POD_UID"), "");
        for missing in 0..4 {
            let mut some = all.to_vec();
            let (name, _) = some.remove(missing);
            let error = invocation(&some).expect_err("one is missing");
            assert_eq!(error.code, 4);
            assert!(error.message.contains(name), "{}", error.message);
        }
        assert!(invocation(&[("CNI_COMMAND", "STATUS")]).is_ok());
        assert!(invocation(&[("CNI_COMMAND", "VERSION")]).is_ok());
        assert_eq!(
            invocation(&[("CNI_COMMAND", "EAT")])
                .expect_err("unknown")
                .code,
            4
        );
        let del = [
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "abc"),
            ("CNI_IFNAME", "eth0"),
        ];
        assert!(invocation(&del).is_ok(), "the namespace may be gone");
    }
}
