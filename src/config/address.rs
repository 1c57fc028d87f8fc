//! Addresses as people write them: seeds, and where a node says it is. Parses only; resolves nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How much of a value an error message shows, in characters.
const SHOWN_MAX: usize = 120;

/// Where a starting node finds another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Seed {
    Address(SocketAddr),
    /// A name to resolve anew at each try; an IPv6 address with an interface's name (`fe80::1%eth0`) is one.
    Host(String, u16),
}

/// Where peers are told to reach this node; without a port, at the bound one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Advertise {
    pub(crate) ip: IpAddr,
    pub(crate) port: Option<u16>,
}

impl Seed {
    /// Parses `ip:port`, `[ipv6]:port` (with a scope id or an interface's name) or `host:port`.
    ///
    /// # Errors
    /// The fault and the remedy, in words.
    pub(crate) fn parse(text: &str) -> Result<Self, (String, String)> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return check_target(address.ip(), Some(address.port())).map(|()| Self::Address(address));
        }
        let remedy = || "use ip:port, [ipv6]:port or host:port".to_owned();
        if text.is_empty() {
            return Err(("it is empty".into(), remedy()));
        }
        if text.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6())
            || text.matches(':').count() > 1 && !text.starts_with('[')
        {
            return Err((
                "an IPv6 address needs brackets and a port".into(),
                "write it as [::1]:7946".into(),
            ));
        }
        let Some((host, port)) = text.rsplit_once(':').filter(|_| !text.ends_with(']')) else {
            return Err(("it has no port".into(), format!("write it as {}:7946", brief(text))));
        };
        let port = match port.parse::<u16>() {
            Ok(port) if port > 0 && port_is_plain(text) => port,
            _ => return Err((format!("{} is no port", shown(port)), "use a port from 1 to 65535".into())),
        };
        if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let (ip, scope) = inner.split_once('%').ok_or_else(|| (not_ipv6(inner), remedy()))?;
            let plain =
                !scope.is_empty() && scope.len() < 16 && scope.bytes().all(|byte| byte.is_ascii_graphic());
            return match ip.parse::<Ipv6Addr>() {
                Ok(_) if plain => Ok(Self::Host(inner.into(), port)),
                _ => Err((not_ipv6(inner), remedy())),
            };
        }
        match fault_in_host(host) {
            None => Ok(Self::Host(host.into(), port)),
            Some(fault) => Err((fault, remedy())),
        }
    }
}

/// Whether the port is written in digits alone: `parse` takes a sign too.
fn port_is_plain(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
}

fn not_ipv6(text: &str) -> String {
    format!("{} is no IPv6 address", shown(text))
}

/// What makes `host` no name to resolve, if anything does.
fn fault_in_host(host: &str) -> Option<String> {
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.is_empty() {
        return Some("it has no host".into());
    }
    if name.len() > 253 {
        return Some(format!("the host name has {} characters, more than 253", name.len()));
    }
    if let Some(wrong) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
        return Some(format!("{wrong:?} is not allowed in a host name"));
    }
    if name.split('.').any(|label| label.is_empty() || label.len() > 63) {
        return Some("a part of the host name is empty or longer than 63 characters".into());
    }
    // What ends in a number is an address (RFC 3696 §2), and had it been one it would have been parsed.
    let last = name.rsplit('.').next().unwrap_or(name);
    last.bytes().all(|byte| byte.is_ascii_digit()).then(|| format!("{} is no IPv4 address", shown(name)))
}

impl Advertise {
    /// Parses `ip:port` or an IP address alone.
    ///
    /// # Errors
    /// The fault and the remedy, in words.
    pub(crate) fn parse(text: &str) -> Result<Self, (String, String)> {
        let (ip, port) = match (text.parse::<SocketAddr>(), text.parse::<IpAddr>()) {
            (Ok(address), _) => (address.ip(), Some(address.port())),
            (_, Ok(ip)) => (ip, None),
            _ => {
                let remedy = "use ip:port, or an IP address alone for the bound port; names are not resolved";
                return Err(("it is no IP address".into(), remedy.into()));
            }
        };
        check_target(ip, port).map(|()| Self { ip, port })
    }

    /// The address to tell peers, when the socket is bound to `bound`.
    pub(crate) fn at(self, bound: SocketAddr) -> SocketAddr {
        SocketAddr::new(self.ip, self.port.unwrap_or(bound.port()))
    }
}

/// Refuses what no single node can be reached at.
fn check_target(ip: IpAddr, port: Option<u16>) -> Result<(), (String, String)> {
    let kind = match ip.to_canonical() {
        ip if ip.is_unspecified() => "unspecified",
        ip if ip.is_multicast() => "multicast",
        IpAddr::V4(Ipv4Addr::BROADCAST) => "the broadcast address",
        _ if port == Some(0) => return Err(("0 is no port".into(), "use a port from 1 to 65535".into())),
        _ => return Ok(()),
    };
    Err((format!("{ip} is {kind}: no node can be reached there"), "use an address of one host".into()))
}

pub(super) fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// A text as a message shows it: quoted, escaped, on one line, of bounded length.
pub(super) fn shown(text: &str) -> String {
    brief_with(text, |text| format!("{text:?}"))
}

/// The same without quotes.
fn brief(text: &str) -> String {
    brief_with(text, |text| text.escape_debug().to_string())
}

fn brief_with(text: &str, quote: impl Fn(&str) -> String) -> String {
    match text.char_indices().nth(SHOWN_MAX) {
        Some((at, _)) => format!("{}…", quote(&text[..at])),
        None => quote(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_an_address_or_a_name_with_a_port() {
        for (text, address) in [
            ("10.0.0.1:7946", "10.0.0.1:7946"),
            ("[::1]:1", "[::1]:1"),
            ("[fe80::1%3]:65535", "[fe80::1%3]:65535"),
        ] {
            assert_eq!(Seed::parse(text), Ok(Seed::Address(address.parse().unwrap())), "{text}");
        }
        for (text, host, port) in [
            ("lb-1:7946", "lb-1", 7946),
            ("lb_1.example.com.:1", "lb_1.example.com.", 1),
            ("localhost:65535", "localhost", 65535),
            ("[fe80::1%eth0]:7946", "fe80::1%eth0", 7946),
            ("1.2.3.x4:7", "1.2.3.x4", 7),
        ] {
            assert_eq!(Seed::parse(text), Ok(Seed::Host(host.into(), port)), "{text}");
        }
    }

    #[test]
    fn what_is_no_seed_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "it is empty"),
            ("lb-1", "no port"),
            ("10.0.0.1", "no port"),
            ("[::1]", "no port"),
            ("::1", "needs brackets and a port"),
            ("fe80::1:7946", "needs brackets and a port"),
            ("[::1]:", "\"\" is no port"),
            ("lb-1:", "\"\" is no port"),
            ("lb-1:0", "\"0\" is no port"),
            ("lb-1:+1", "\"+1\" is no port"),
            ("lb-1:65536", "\"65536\" is no port"),
            ("lb-1:http", "\"http\" is no port"),
            ("10.0.0.1:0", "0 is no port"),
            (":7946", "no host"),
            ("999.1.1.1:7946", "no IPv4 address"),
            ("1.2.3:7946", "no IPv4 address"),
            ("lb 1:7946", "' ' is not allowed"),
            ("https://lb-1:7946", "needs brackets"),
            ("lb..1:7946", "a part of the host name"),
            ("bücher:7946", "'ü' is not allowed"),
            ("[lb-1]:7946", "no IPv6 address"),
            ("[lb-1%x]:7946", "no IPv6 address"),
            ("[::1%]:7946", "no IPv6 address"),
            ("0.0.0.0:7946", "unspecified"),
            ("[::]:7946", "unspecified"),
            ("[::ffff:0.0.0.0]:7946", "unspecified"),
            ("239.1.1.1:7946", "multicast"),
            ("[ff02::1]:7946", "multicast"),
            ("255.255.255.255:7946", "broadcast"),
        ] {
            let (fault, remedy) = Seed::parse(text).unwrap_err();
            assert!(fault.contains(reason), "{text}: {fault}");
            assert!(!remedy.is_empty());
        }
        assert!(Seed::parse(&format!("{}:1", "a.".repeat(200))).is_err());
        assert_eq!(Seed::parse("lb-1").unwrap_err().1, "write it as lb-1:7946");
    }

    #[test]
    fn no_text_makes_the_parsers_panic() {
        use proptest::prelude::*;
        proptest!(|(text in "[\\[\\]:.%a-z0-9é\\-]{0,24}")| {
            let _ = Seed::parse(&text);
            let _ = Advertise::parse(&text);
        });
    }

    #[test]
    fn an_advertised_address_takes_the_bound_port_unless_it_names_one() {
        let bound = "0.0.0.0:7000".parse().unwrap();
        for (text, address) in [
            ("203.0.113.7:7946", "203.0.113.7:7946"),
            ("203.0.113.7", "203.0.113.7:7000"),
            ("2001:db8::1", "[2001:db8::1]:7000"),
            ("[2001:db8::1]:1", "[2001:db8::1]:1"),
        ] {
            assert_eq!(Advertise::parse(text).unwrap().at(bound), address.parse().unwrap());
        }
        for text in
            ["0.0.0.0", "::", "[::]:7946", "224.0.0.1:1", "255.255.255.255", "203.0.113.7:0", "lb-1:7946", ""]
        {
            assert!(Advertise::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_value_is_shown_on_one_line_of_bounded_length() {
        assert_eq!(shown("a\n\u{1b}[31m"), r#""a\n\u{1b}[31m""#);
        assert!(shown(&"x".repeat(10_000)).len() < 200);
    }
}
