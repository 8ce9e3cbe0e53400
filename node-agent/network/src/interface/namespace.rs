//! A network namespace: netlink requests and per-interface sysctls that take effect inside it.
//!
//! A netlink socket belongs to the namespace in which it was opened, whoever uses it later; so a thread
//! enters the namespace only to open the socket and to write under `/proc/sys/net`, which shows the
//! namespace of the thread that looks.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope};
use nix::sched::{CloneFlags, setns};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use tokio::task::JoinHandle;

use super::{LinkError, Mac};

#[derive(Debug)]
pub struct Namespace {
    file: Arc<File>,
    handle: Handle,
    connection: JoinHandle<()>,
}

/// What of an interface matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub up: bool,
    /// The index, in another namespace, of the interface that it is a pair with or on top of.
    pub peer: Option<u32>,
}

impl Namespace {
    /// The namespace at a path such as `/run/netns/x` or `/proc/1/ns/net`.
    pub async fn open(path: &Path) -> Result<Self, LinkError> {
        let doing = || format!("opening the network namespace {}", path.display());
        let file = Arc::new(File::open(path).map_err(|source| LinkError::io(doing(), source))?);
        let runtime = tokio::runtime::Handle::current();
        let (connection, handle, _) = within(&file, move || {
            // The socket registers itself with the runtime.
            let _context = runtime.enter();
            rtnetlink::new_connection()
        })
        .await
        .flatten()
        .map_err(|source| LinkError::io(doing(), source))?;
        Ok(Self {
            file,
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// The namespace that this process is in.
    pub async fn current() -> Result<Self, LinkError> {
        Self::open(Path::new("/proc/thread-self/ns/net")).await
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Runs a function on a thread inside the namespace.
    pub async fn within<T: Send + 'static>(
        &self,
        function: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        within(&self.file, function).await
    }

    pub async fn link(&self, name: &str) -> Result<Option<Link>, LinkError> {
        let found = self
            .handle
            .link()
            .get()
            .match_name(name)
            .execute()
            .try_next()
            .await;
        match found {
            Ok(message) => Ok(message.map(Link::from)),
            Err(error) if is_no_device(&error) => Ok(None),
            Err(error) => Err(LinkError::netlink(format!("looking for {name}"), error)),
        }
    }

    pub async fn links(&self) -> Result<Vec<Link>, LinkError> {
        let messages: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| LinkError::netlink("listing the interfaces", error))?;
        Ok(messages.into_iter().map(Link::from).collect())
    }

    pub async fn set_up(&self, index: u32) -> Result<(), LinkError> {
        let change = LinkUnspec::new_with_index(index).up().build();
        self.handle
            .link()
            .change(change)
            .execute()
            .await
            .map_err(|error| LinkError::netlink(format!("setting interface {index} up"), error))
    }

    pub(crate) async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), LinkError> {
        let change = LinkUnspec::new_with_index(index).mtu(mtu).build();
        let request = self.handle.link().change(change);
        request.execute().await.map_err(|error| {
            LinkError::netlink(
                format!("setting the MTU of interface {index} to {mtu}"),
                error,
            )
        })
    }

    /// Removes an interface; one that is gone already is removed.
    pub async fn remove(&self, index: u32) -> Result<(), LinkError> {
        match self.handle.link().del(index).execute().await {
            Err(error) if !is_no_device(&error) => Err(LinkError::netlink(
                format!("removing interface {index}"),
                error,
            )),
            _ => Ok(()),
        }
    }

    /// Assigns an address of one host (/32, /128).
    pub(crate) async fn add_address(&self, index: u32, address: IpAddr) -> Result<(), LinkError> {
        let mut request = self
            .handle
            .address()
            .add(index, address, host_prefix_length(address))
            .replace();
        if address.is_ipv6() {
            // Nobody else can have it: waiting for duplicate detection would only delay the pod.
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            request.message_mut().attributes.push(flags);
        }
        request.execute().await.map_err(|error| {
            LinkError::netlink(format!("assigning {address} to interface {index}"), error)
        })
    }

    pub async fn addresses(&self, index: u32) -> Result<Vec<IpAddr>, LinkError> {
        let request = self.handle.address().get().set_link_index_filter(index);
        let messages: Vec<_> = request.execute().try_collect().await.map_err(|error| {
            LinkError::netlink(format!("listing the addresses of interface {index}"), error)
        })?;
        let addresses = messages.into_iter().flat_map(|message| message.attributes);
        Ok(addresses
            .filter_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(address),
                _ => None,
            })
            .collect())
    }

    /// The addresses of all interfaces that are up, with the networks that they are in.
    pub async fn networks(&self) -> Result<Vec<(u32, IpNet)>, LinkError> {
        let up: Vec<u32> = self
            .links()
            .await?
            .into_iter()
            .filter(|link| link.up)
            .map(|link| link.index)
            .collect();
        let messages: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| LinkError::netlink("listing the addresses", error))?;
        let networks = messages.iter().filter_map(|message| {
            let length = message.header.prefix_len;
            // On a point-to-point interface `Address` is the other end.
            let local = message.attributes.iter().find_map(|it| match it {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            let address = message.attributes.iter().find_map(|it| match it {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
            let network = IpNet::new(local.or(address)?, length).ok()?;
            Some((message.header.index, network))
        });
        Ok(networks.filter(|(index, _)| up.contains(index)).collect())
    }

    /// Says for good which MAC an address is behind.
    pub(crate) async fn add_neighbour(
        &self,
        index: u32,
        address: IpAddr,
        mac: Mac,
    ) -> Result<(), LinkError> {
        let request = self.handle.neighbours().add(index, address);
        request
            .link_layer_address(&mac.0)
            .replace()
            .execute()
            .await
            .map_err(|error| {
                LinkError::netlink(
                    format!("adding the neighbour {address} of interface {index}"),
                    error,
                )
            })
    }

    /// Routes one address straight to an interface.
    pub(crate) async fn add_host_route(
        &self,
        index: u32,
        address: IpAddr,
        source: Option<IpAddr>,
    ) -> Result<(), LinkError> {
        let doing = || format!("adding the route to {address} by interface {index}");
        let mut route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(address, host_prefix_length(address))
            .map_err(|error| LinkError::route(doing(), &error))?
            .output_interface(index)
            .scope(RouteScope::Link);
        if let Some(source) = source.filter(|source| source.is_ipv4() == address.is_ipv4()) {
            route = route
                .pref_source(source)
                .map_err(|error| LinkError::route(doing(), &error))?;
        }
        let request = self.handle.route().add(route.build()).replace();
        request
            .execute()
            .await
            .map_err(|error| LinkError::netlink(doing(), error))
    }

    /// Routes everything else by a gateway on an interface, reachable there whatever the addresses say.
    pub(crate) async fn add_default_route(
        &self,
        index: u32,
        gateway: IpAddr,
    ) -> Result<(), LinkError> {
        let doing = || format!("adding the default route by {gateway}");
        let any: IpAddr = if gateway.is_ipv4() {
            std::net::Ipv4Addr::UNSPECIFIED.into()
        } else {
            std::net::Ipv6Addr::UNSPECIFIED.into()
        };
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(any, 0)
            .and_then(|route| route.gateway(gateway))
            .map_err(|error| LinkError::route(doing(), &error))?
            .output_interface(index)
            .onlink()
            .build();
        let request = self.handle.route().add(route).replace();
        request
            .execute()
            .await
            .map_err(|error| LinkError::netlink(doing(), error))
    }

    /// Addresses that are routed straight to an interface, as `(interface index, address)`.
    pub(crate) async fn host_routes(&self) -> Result<Vec<(u32, IpAddr)>, LinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut wanted = RouteMessage::default();
            wanted.header.address_family = family;
            let messages: Vec<RouteMessage> = self
                .handle
                .route()
                .get(wanted)
                .execute()
                .try_collect()
                .await
                .map_err(|error| LinkError::netlink("listing the routes", error))?;
            routes.extend(messages.iter().filter_map(host_route));
        }
        Ok(routes)
    }

    /// Sets `/proc/sys/net/<path>` to each value, inside the namespace.
    pub async fn set_sysctls(
        &self,
        settings: Vec<(String, impl AsRef<str> + Send + 'static)>,
    ) -> Result<(), LinkError> {
        let written = self.within(move || {
            for (path, value) in settings {
                let path = format!("/proc/sys/net/{path}");
                // Without the end of a line an empty list would be nothing to write.
                std::fs::write(&path, format!("{}\n", value.as_ref())).map_err(|source| {
                    LinkError::io(format!("writing {} to {path}", value.as_ref()), source)
                })?;
            }
            Ok(())
        });
        written
            .await
            .map_err(|source| LinkError::io("entering a network namespace", source))?
    }

    /// What `/proc/sys/net/<path>` says of each, inside the namespace; `None` where there is no such setting.
    pub async fn sysctls(&self, paths: Vec<String>) -> Result<Vec<Option<String>>, LinkError> {
        let read = |path: String| {
            let text = std::fs::read_to_string(format!("/proc/sys/net/{path}")).ok()?;
            Some(text.trim().to_owned())
        };
        self.within(move || paths.into_iter().map(read).collect())
            .await
            .map_err(|source| LinkError::io("entering a network namespace", source))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The connection would keep the namespace alive.
        self.connection.abort();
    }
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            peer: None,
        };
        let mut is_elsewhere = false;
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Link(peer) => link.peer = Some(peer),
                LinkAttribute::LinkNetNsId(_) => is_elsewhere = true,
                _ => {}
            }
        }
        link.peer = link.peer.filter(|_| is_elsewhere);
        link
    }
}

async fn within<T: Send + 'static>(
    namespace: &Arc<File>,
    function: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let namespace = namespace.clone();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // A thread of its own: one of a pool that failed to leave again would harm whoever uses it next.
    std::thread::Builder::new()
        .name("netns".into())
        .spawn(move || {
            let result = setns(&*namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
            let _ = sender.send(result.map(|()| function()));
        })?;
    receiver
        .await
        .map_err(|_| io::Error::other("the thread in the namespace panicked"))?
}

fn host_prefix_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn host_route(message: &RouteMessage) -> Option<(u32, IpAddr)> {
    let mut index = None;
    let mut destination = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                destination = Some(IpAddr::V4(*address));
            }
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                destination = Some(IpAddr::V6(*address));
            }
            _ => {}
        }
    }
    let destination = destination?;
    let whole = message.header.destination_prefix_length == host_prefix_length(destination);
    whole.then_some((index?, destination))
}

/// The interface does not exist (any more).
pub(super) fn is_no_device(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message)
        if message.raw_code() == -(nix::errno::Errno::ENODEV as i32))
}
