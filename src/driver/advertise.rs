//! Where peers are told to reach a node that is bound to every address of its host: the address from which
//! the host would reach the first seed, or anybody. Asks the routing table; sends nothing, resolves no name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::config::Seed;

/// The address to advertise for a socket bound to `bound`.
///
/// If that is every address of the host: the one from which it would reach the first seed on another host,
/// else a seed on this host, else from which it would leave by its default route, else the loopback. Seeds
/// given by name have no say: to resolve one may take longer than a start should.
pub(super) fn reachable(bound: SocketAddr, seeds: &[Seed]) -> SocketAddr {
    if !bound.ip().is_unspecified() {
        return bound;
    }
    let routes: Vec<_> = seeds
        .iter()
        .filter_map(|seed| match seed {
            Seed::Address(address) => source(bound.ip(), *address),
            Seed::Host(..) => None,
        })
        .collect();
    let elsewhere = routes.iter().find(|ip| !ip.to_canonical().is_loopback());
    // Documentation addresses (RFC 5737, RFC 3849): nobody has them, so the default route leads there.
    let far_v4 = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 9));
    let far_v6 = SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9));
    let here = match bound {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let ip = elsewhere
        .or_else(|| routes.first())
        .copied()
        .or_else(|| source(bound.ip(), far_v6))
        .or_else(|| source(bound.ip(), far_v4))
        .unwrap_or(here);
    SocketAddr::new(ip, bound.port())
}

/// From which address a socket that is bound like ours would reach `target`; `None` if it cannot.
///
/// To connect a UDP socket sends nothing; it asks for the route.
fn source(bound: IpAddr, target: SocketAddr) -> Option<IpAddr> {
    let any = match (bound, target) {
        (_, SocketAddr::V4(_)) => IpAddr::V4(Ipv4Addr::UNSPECIFIED), // one bound to `::` takes IPv4 as well
        (IpAddr::V6(_), SocketAddr::V6(_)) => bound,
        (IpAddr::V4(_), SocketAddr::V6(_)) => return None,
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(target).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(bound: &str, seeds: &[&str]) -> SocketAddr {
        let seeds: Vec<_> = seeds.iter().map(|seed| Seed::parse(seed).unwrap()).collect();
        reachable(bound.parse().unwrap(), &seeds)
    }

    #[test]
    fn a_bound_address_is_advertised_as_it_is() {
        assert_eq!(told("127.0.0.2:7946", &["192.0.2.7:1"]), "127.0.0.2:7946".parse().unwrap());
    }

    #[test]
    fn the_way_to_the_seeds_decides_and_the_port_is_the_bound_one() {
        assert_eq!(told("0.0.0.0:4711", &["127.0.0.1:7946"]), "127.0.0.1:4711".parse().unwrap());
        // A list that all nodes share may begin with this very host.
        let default = told("0.0.0.0:4711", &[]);
        if !default.ip().is_loopback() {
            let seeds = ["127.0.0.1:7946", "192.0.2.7:7946"];
            assert_eq!(told("0.0.0.0:4711", &seeds), default);
        }
    }

    #[test]
    fn without_seeds_by_address_something_is_advertised_that_is_an_address() {
        for seeds in [&[][..], &["lb-1.invalid:7946"], &["[2001:db8::7]:7946"]] {
            let told = told("0.0.0.0:4711", seeds);
            assert!(told.is_ipv4() && !told.ip().is_unspecified() && told.port() == 4711, "{told}");
        }
        assert!(!told("[::]:4711", &[]).ip().is_unspecified());
    }
}
