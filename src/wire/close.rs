//! Why a connection ends: the close codes that peers tell one another. Their numbers never change.

/// Why a peer's connection is closed, or was. The numbers are on the wire and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CloseCode(pub(crate) u64);

impl CloseCode {
    /// What quinn sends when a handle is merely dropped: a crash, never a leave.
    pub(crate) const UNSPECIFIED: Self = Self(0);
    pub(crate) const LEFT: Self = Self(1);
    pub(crate) const RESTARTING: Self = Self(2);
    pub(crate) const DUPLICATE_CONNECTION: Self = Self(3);
    pub(crate) const WRONG_CLUSTER: Self = Self(0x10);
    pub(crate) const IDENTITY_MISMATCH: Self = Self(0x11);
    pub(crate) const NO_LONGER_TRUSTED: Self = Self(0x12);
    pub(crate) const DUPLICATE_ID: Self = Self(0x13);
    pub(crate) const PROTOCOL_VIOLATION: Self = Self(0x20);
    pub(crate) const VERSION_UNSUPPORTED: Self = Self(0x21);
    pub(crate) const TOO_LARGE: Self = Self(0x22);
    pub(crate) const RATE_LIMITED: Self = Self(0x23);
    pub(crate) const TOO_SLOW: Self = Self(0x24);
    pub(crate) const TOO_MANY_CONNECTIONS: Self = Self(0x25);
    pub(crate) const INTERNAL_ERROR: Self = Self(0x30);
}

impl CloseCode {
    /// The code's name, as logs show it; `tls-alert` for what the handshake refused.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::UNSPECIFIED => "unspecified",
            Self::LEFT => "left",
            Self::RESTARTING => "restarting",
            Self::DUPLICATE_CONNECTION => "duplicate-connection",
            Self::WRONG_CLUSTER => "wrong-cluster",
            Self::IDENTITY_MISMATCH => "identity-mismatch",
            Self::NO_LONGER_TRUSTED => "no-longer-trusted",
            Self::DUPLICATE_ID => "duplicate-id",
            Self::PROTOCOL_VIOLATION => "protocol-violation",
            Self::VERSION_UNSUPPORTED => "version-unsupported",
            Self::TOO_LARGE => "too-large",
            Self::RATE_LIMITED => "rate-limited",
            Self::TOO_SLOW => "too-slow",
            Self::TOO_MANY_CONNECTIONS => "too-many-connections",
            Self::INTERNAL_ERROR => "internal-error",
            Self(0x100..=0x1ff) => "tls-alert",
            Self(_) => "unknown",
        }
    }
}
