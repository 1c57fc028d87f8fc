//! Everything that travels: what is said before trust (`hello`), what is said after (`message`), how bytes
//! become either (`codec`), and every bound a peer can meet (`limits`). Never awaits, knows no rule.

pub(crate) mod close;
pub(crate) mod codec;
pub(crate) mod hello;
pub(crate) mod limits;
pub(crate) mod message;
#[cfg(test)]
mod tests;

pub(crate) use self::close::CloseCode;

/// One bidirectional stream, as the core names it. The core numbers those it opens from 1 in steps of 2; the
/// driver numbers those that peers open, from 2 in steps of 2. Never used twice in the life of a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct StreamId(pub(crate) u64);
