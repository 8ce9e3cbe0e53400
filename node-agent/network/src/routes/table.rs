//! Our routes in the kernel's main table.

use std::net::IpAddr;

use futures::{StreamExt as _, TryStreamExt as _};
use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};

use super::{NextHop, Route};
use crate::interface::{LinkError, Namespace};

/// Who made a route: the first letter of our name, a number that nobody has claimed (`/etc/iproute2/rt_protos`).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(b'w');

pub(super) async fn list(host: &Namespace) -> Result<Vec<Route>, LinkError> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut wanted = RouteMessage::default();
        wanted.header.address_family = family;
        let messages: Vec<RouteMessage> = host
            .handle()
            .route()
            .get(wanted)
            .execute()
            .try_collect()
            .await
            .map_err(|error| LinkError::netlink("listing the routes", error))?;
        routes.extend(messages.iter().filter_map(read));
    }
    Ok(routes)
}

/// In the place of the one of ours that it replaces, if it does; else before those of others to the same addresses, which
/// are in use again when ours goes.
pub(super) async fn put(host: &Namespace, route: &Route, replaces: bool) -> Result<(), LinkError> {
    let failed =
        |error| LinkError::netlink(format!("adding the route to {}", route.destination), error);
    let message = message(route, "adding")?;
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewRoute(message));
    let replace = if replaces { NLM_F_REPLACE } else { 0 };
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | replace;
    let answers = host.handle().clone().request(request).map_err(failed)?;
    futures::pin_mut!(answers);
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(failed(rtnetlink::Error::NetlinkError(error)));
        }
    }
    Ok(())
}

/// One that is gone already is removed.
pub(super) async fn delete(host: &Namespace, route: &Route) -> Result<(), LinkError> {
    let doing = || format!("removing the route to {}", route.destination);
    let message = message(route, "removing")?;
    match host.handle().route().del(message).execute().await {
        Err(rtnetlink::Error::NetlinkError(message))
            if message.raw_code() == -(nix::errno::Errno::ESRCH as i32) =>
        {
            Ok(())
        }
        result => result.map_err(|error| LinkError::netlink(doing(), error)),
    }
}

fn message(route: &Route, doing: &str) -> Result<RouteMessage, LinkError> {
    let doing = format!("{doing} the route to {}", route.destination);
    let to = &route.destination;
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(to.addr(), to.prefix_len())
        .map_err(|error| LinkError::route(doing.clone(), &error))?
        .protocol(PROTOCOL)
        .priority(route.metric);
    builder = match route.next {
        NextHop::Gateway { address, interface } => builder
            .gateway(address)
            .map_err(|error| LinkError::route(doing.clone(), &error))?
            .output_interface(interface),
        NextHop::Device { interface } => {
            builder.output_interface(interface).scope(RouteScope::Link)
        }
        NextHop::Unreachable => builder.kind(RouteType::Unreachable),
    };
    if let Some(source) = route.source {
        builder = builder
            .pref_source(source)
            .map_err(|error| LinkError::route(doing, &error))?;
    }
    Ok(builder.build())
}

fn read(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.protocol != PROTOCOL || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let (mut destination, mut gateway, mut interface, mut source) = (None, None, None, None);
    let mut metric = 0;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(found) => destination = address(found),
            RouteAttribute::Gateway(found) => gateway = address(found),
            RouteAttribute::PrefSource(found) => source = address(found),
            RouteAttribute::Oif(found) => interface = Some(*found),
            RouteAttribute::Priority(found) => metric = *found,
            _ => {}
        }
    }
    // The kernel gives an unreachable IPv6 route an interface, the loopback.
    let next = match (header.kind, gateway, interface) {
        (RouteType::Unreachable, ..) => NextHop::Unreachable,
        (_, Some(address), Some(interface)) => NextHop::Gateway { address, interface },
        (_, _, interface) => NextHop::Device {
            interface: interface?,
        },
    };
    let destination = IpNet::new(destination?, header.destination_prefix_length).ok()?;
    Some(Route {
        destination,
        next,
        source,
        metric,
    })
}

fn address(found: &RouteAddress) -> Option<IpAddr> {
    match found {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
