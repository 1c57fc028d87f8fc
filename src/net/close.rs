//! Close codes as quinn carries them, and quinn's many ways to lose a connection as one `Closed`. What a peer
//! wrote is escaped, cut and put on one line here, before anything else sees it.

use std::net::SocketAddr;

use quinn::{ConnectionError, VarInt};

use crate::{Error, wire::CloseCode};

/// The longest reason sent or kept, in characters.
const REASON_LEN_MAX: usize = 256;
/// QUIC carries TLS alerts as 0x100 + the alert.
const TLS_ALERT: u64 = 0x100;

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Closed {
    pub(crate) code: CloseCode,
    /// Escaped, one line.
    pub(crate) reason: String,
    pub(crate) by_peer: bool,
}

impl Closed {
    /// What this side decided.
    pub(crate) fn ours(code: CloseCode, reason: impl AsRef<str>) -> Self {
        Self { code, reason: one_line(reason.as_ref()), by_peer: false }
    }

    /// As the error of a dial.
    pub(crate) fn refusal(self, address: SocketAddr) -> Error {
        Error::Refused { address: address.to_string(), code: self.code.0, reason: self.reason }
    }

    /// What quinn says of a connection that is gone.
    pub(crate) fn from_quinn(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => Self {
                code: CloseCode(close.error_code.into_inner()),
                reason: one_line(&String::from_utf8_lossy(&close.reason)),
                by_peer: true,
            },
            ConnectionError::ConnectionClosed(close) => {
                let code = u64::from(close.error_code);
                let told = String::from_utf8_lossy(&close.reason);
                Self { code: CloseCode(code), reason: tls_reason(code, &told), by_peer: true }
            }
            ConnectionError::TransportError(error) => {
                let code = u64::from(error.code);
                Self { code: CloseCode(code), reason: tls_reason(code, &error.reason), by_peer: false }
            }
            other => Self::ours(CloseCode::UNSPECIFIED, other.to_string()),
        }
    }
}

/// The code as QUIC's variable-length integer; all of ours fit.
pub(crate) fn varint(code: CloseCode) -> VarInt {
    VarInt::from_u64(code.0).unwrap_or(VarInt::MAX)
}

/// Closes with a code and a reason that fits into one packet.
pub(crate) fn close(connection: &quinn::Connection, closed: &Closed) {
    connection.close(varint(closed.code), closed.reason.as_bytes());
}

/// `text` escaped and cut, so that no peer can write a second line or a terminal sequence into a log.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::new();
    for character in text.chars().take(REASON_LEN_MAX) {
        match character {
            '"' | '\'' => line.push(character),
            other => line.extend(other.escape_debug()),
        }
        if line.len() >= REASON_LEN_MAX {
            line.push('…');
            break;
        }
    }
    line
}

/// The name under which a refusal is counted; a fixed set, whatever a peer sends.
pub(crate) fn cause(code: CloseCode) -> &'static str {
    match code.0 {
        alert @ TLS_ALERT..=0x1ff => alert_name(alert - TLS_ALERT),
        _ => code.name(),
    }
}

fn tls_reason(code: u64, told: &str) -> String {
    if !(TLS_ALERT..=0x1ff).contains(&code) {
        return one_line(told);
    }
    let name = alert_name(code - TLS_ALERT);
    one_line(&if told.is_empty() { format!("TLS alert {name}") } else { format!("TLS alert {name}: {told}") })
}

/// RFC 8446 §6, as far as a handshake can meet them.
const fn alert_name(alert: u64) -> &'static str {
    match alert {
        10 => "unexpected_message",
        40 => "handshake_failure",
        42 => "bad_certificate",
        43 => "unsupported_certificate",
        44 => "certificate_revoked",
        45 => "certificate_expired",
        46 => "certificate_unknown",
        47 => "illegal_parameter",
        48 => "unknown_ca",
        49 => "access_denied",
        50 => "decode_error",
        51 => "decrypt_error",
        70 => "protocol_version",
        71 => "insufficient_security",
        80 => "internal_error",
        109 => "missing_extension",
        112 => "unrecognized_name",
        116 => "certificate_required",
        120 => "no_application_protocol",
        _ => "other_alert",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_reason_stays_on_one_line() {
        assert_eq!(one_line("a\n\u{1b}[31mb"), "a\\n\\u{1b}[31mb");
        assert!(one_line(&"\n".repeat(1 << 16)).len() <= 2 * REASON_LEN_MAX);
        assert_eq!(one_line("it is \"x\""), "it is \"x\"");
    }

    #[test]
    fn alerts_have_names() {
        assert_eq!(cause(CloseCode(0x100 + 48)), "unknown_ca");
        assert_eq!(cause(CloseCode(0x13)), "duplicate-id");
        assert_eq!(cause(CloseCode(77_777)), "unknown");
        assert!(tls_reason(0x174, "x").contains("certificate_required"));
    }
}
