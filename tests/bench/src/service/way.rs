//! The ways that a Service can be made to work, beside each other.

use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// No Service: the client knows its backend.
    Direct,
    IptablesLegacy,
    IptablesNft,
    Nftables,
    Ipvs,
    /// Windlass, translated at connect.
    SocketHook,
    /// Windlass, each packet translated.
    Tc,
    /// Windlass, client and server both outside: each packet of a connection is sent on before the kernel makes one of
    /// a frame.
    Xdp,
    /// Whatever the cluster of `--kubeconfig` has.
    #[value(skip)]
    Cluster,
}

impl Way {
    pub const ALL: [Self; 9] = [
        Self::Direct,
        Self::IptablesLegacy,
        Self::IptablesNft,
        Self::Nftables,
        Self::Ipvs,
        Self::SocketHook,
        Self::Tc,
        Self::Xdp,
        Self::Cluster,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::IptablesLegacy => "iptables (legacy)",
            Self::IptablesNft => "iptables (nft)",
            Self::Nftables => "nftables",
            Self::Ipvs => "IPVS",
            Self::SocketHook => "windlass, socket hook",
            Self::Tc => "windlass, tc",
            Self::Xdp => "windlass, XDP",
            Self::Cluster => "the cluster's Services",
        }
    }

    /// It is made here, in namespaces.
    pub fn is_local(self) -> bool {
        self != Self::Cluster
    }

    pub fn is_windlass(self) -> bool {
        matches!(self, Self::SocketHook | Self::Tc | Self::Xdp)
    }

    /// Why it cannot be measured on this machine.
    pub fn missing(self) -> Option<String> {
        let tool = match self {
            Self::Direct => return None,
            Self::IptablesLegacy => "iptables-legacy-restore",
            Self::IptablesNft => "iptables-nft-restore",
            Self::Nftables => "nft",
            Self::Ipvs if !std::path::Path::new("/proc/net/ip_vs").exists() => {
                return Some(
                    "this kernel has no IPVS (no /proc/net/ip_vs; try `modprobe ip_vs`)".into(),
                );
            }
            Self::Ipvs => "ipvsadm",
            Self::SocketHook | Self::Tc | Self::Xdp | Self::Cluster => return None,
        };
        let found = std::env::var_os("PATH").is_some_and(|path| {
            std::env::split_paths(&path)
                .chain(["/usr/sbin".into(), "/sbin".into()])
                .any(|folder| folder.join(tool).is_file())
        });
        (!found).then(|| format!("{tool} is not installed"))
    }
}
