//! The check of a value, against a reader that follows the MessagePack specification word by word, and against
//! rmp-serde. Knows nothing of records.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
    ser::{SerializeMap as _, SerializeSeq as _},
};

use crate::{
    Value,
    wire::{codec, limits},
};

/// What passes the check is exactly one value of bounded depth, in the eyes of three readers, and comes out of
/// them the same.
pub(super) fn value(bytes: &[u8]) {
    let checked = limits::check_value(bytes);
    let read = read(bytes, limits::VALUE_DEPTH_MAX);
    let whole = read.as_ref().is_some_and(|(_, rest)| rest.is_empty());
    assert_eq!(checked.is_ok(), whole && bytes.len() <= limits::VALUE_LEN_MAX, "{checked:?}, {read:?}");
    for depth in [0, 1, 12] {
        let scanned = limits::scan(bytes, depth).ok();
        assert_eq!(
            scanned,
            self::read(bytes, depth).map(|(_, rest)| bytes.len() - rest.len()),
            "depth {depth}"
        );
    }
    let decoded = codec::decode::<IgnoredAny>(bytes).is_ok();
    let (Ok(value), Some((tree, _))) = (Value::from_bytes(bytes.to_vec()), read) else {
        assert!(!decoded, "the check of messages lets more through than that of values");
        return;
    };
    assert_eq!(value.as_bytes(), bytes);
    assert!(rmp_serde::from_slice::<IgnoredAny>(bytes).is_ok(), "rmp-serde cannot skip what was checked");
    if let Ok(theirs) = value.decode::<Tree>() {
        if tree.is_plain() {
            assert_eq!(theirs, tree, "two readers");
        }
        let again = Value::encode(&theirs).expect("what was decoded can be encoded");
        assert_eq!(again.decode::<Tree>().ok(), Some(theirs), "it does not go round");
    }
    typed(&value);
}

/// What users decode into: an error at worst.
fn typed(value: &Value) {
    let _ = value.decode::<String>();
    let _ = value.decode::<u64>();
    let _ = value.decode::<(i8, f32, Option<char>)>();
    let _ = value.decode::<Vec<u8>>();
    let _ = value.decode::<serde_bytes::ByteBuf>();
    let _ = value.decode::<BTreeMap<String, Vec<Option<u16>>>>();
    let _ = value.decode::<crate::NodeId>();
    let _ = value.decode::<crate::SyncableState>();
    let _ = value.decode::<std::net::SocketAddr>();
    let _ = value.decode::<std::time::Duration>();
}

/// A value of any shape.
#[derive(Clone, Debug, PartialEq)]
enum Tree {
    Nil,
    Flag(bool),
    Whole(i128),
    /// The bits, so that one that is no number is equal to itself.
    Float(u64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Self>),
    Map(Vec<(Self, Self)>),
    /// Text that is not UTF-8, or a type of somebody else's: readers differ in what they make of it.
    Odd,
}

impl Tree {
    fn is_plain(&self) -> bool {
        match self {
            Self::Odd => false,
            Self::List(items) => items.iter().all(Self::is_plain),
            Self::Map(pairs) => pairs.iter().all(|(key, value)| key.is_plain() && value.is_plain()),
            _ => true,
        }
    }
}

/// The first value in `bytes` and what follows it. Recursive and plain: the model of the real check.
fn read(bytes: &[u8], depth: usize) -> Option<(Tree, &[u8])> {
    let (marker, rest) = bytes.split_first()?;
    let (tree, rest) = match marker {
        0x00..=0x7f => (Tree::Whole((*marker).into()), rest),
        0xe0..=0xff => (Tree::Whole(i128::from(*marker) - 256), rest),
        0x80..=0x8f => return read_map(rest, u64::from(marker & 15), depth),
        0x90..=0x9f => return read_list(rest, u64::from(marker & 15), depth),
        0xa0..=0xbf => text(rest, u64::from(marker & 31))?,
        0xc0 => (Tree::Nil, rest),
        0xc1 => return None,
        0xc2 | 0xc3 => (Tree::Flag(*marker == 0xc3), rest),
        0xc4..=0xc6 => {
            let (len, rest) = number(rest, 1 << (marker - 0xc4))?;
            let (body, rest) = take(rest, len)?;
            (Tree::Bytes(body.to_vec()), rest)
        }
        0xc7..=0xc9 => {
            let (len, rest) = number(rest, 1 << (marker - 0xc7))?;
            (Tree::Odd, take(rest, len + 1)?.1)
        }
        0xca => {
            let (bits, rest) = number(rest, 4)?;
            (Tree::Float(f64::from(f32::from_bits(u32::try_from(bits).ok()?)).to_bits()), rest)
        }
        0xcb => {
            let (bits, rest) = number(rest, 8)?;
            (Tree::Float(bits), rest)
        }
        0xcc..=0xcf => {
            let (number, rest) = number(rest, 1 << (marker - 0xcc))?;
            (Tree::Whole(number.into()), rest)
        }
        0xd0..=0xd3 => {
            let width = 1 << (marker - 0xd0);
            let (number, rest) = number(rest, width)?;
            let unused = 64 - 8 * width;
            (Tree::Whole(((number << unused).cast_signed() >> unused).into()), rest)
        }
        0xd4..=0xd8 => (Tree::Odd, take(rest, 1 + (1 << (marker - 0xd4)))?.1),
        0xd9..=0xdb => {
            let (len, rest) = number(rest, 1 << (marker - 0xd9))?;
            text(rest, len)?
        }
        0xdc | 0xdd => {
            let (count, rest) = number(rest, 2 << (marker - 0xdc))?;
            return read_list(rest, count, depth);
        }
        0xde | 0xdf => {
            let (count, rest) = number(rest, 2 << (marker - 0xde))?;
            return read_map(rest, count, depth);
        }
    };
    Some((tree, rest))
}

fn read_list(mut rest: &[u8], count: u64, depth: usize) -> Option<(Tree, &[u8])> {
    let mut items = Vec::new();
    for _ in 0..count {
        let (item, after) = read(rest, depth.checked_sub(1)?)?;
        items.push(item);
        rest = after;
    }
    Some((Tree::List(items), rest))
}

fn read_map(mut rest: &[u8], count: u64, depth: usize) -> Option<(Tree, &[u8])> {
    let mut pairs = Vec::new();
    for _ in 0..count {
        let (key, after) = read(rest, depth.checked_sub(1)?)?;
        let (value, after) = read(after, depth - 1)?;
        pairs.push((key, value));
        rest = after;
    }
    Some((Tree::Map(pairs), rest))
}

fn text(rest: &[u8], len: u64) -> Option<(Tree, &[u8])> {
    let (body, rest) = take(rest, len)?;
    Some((std::str::from_utf8(body).map_or(Tree::Odd, |text| Tree::Text(text.into())), rest))
}

fn number(rest: &[u8], width: u64) -> Option<(u64, &[u8])> {
    let (bytes, rest) = take(rest, width)?;
    Some((bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)), rest))
}

fn take(rest: &[u8], len: u64) -> Option<(&[u8], &[u8])> {
    rest.split_at_checked(usize::try_from(len).ok()?)
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyTree)
    }
}

struct AnyTree;

impl<'de> Visitor<'de> for AnyTree {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Nil)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Nil)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Tree, E> {
        Ok(Tree::Flag(flag))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Tree, E> {
        Ok(Tree::Whole(number.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Tree, E> {
        Ok(Tree::Whole(number.into()))
    }

    fn visit_f32<E>(self, number: f32) -> Result<Tree, E> {
        Ok(Tree::Float(f64::from(number).to_bits()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Tree, E> {
        Ok(Tree::Float(number.to_bits()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
        Ok(Tree::Text(text.into()))
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Tree, E> {
        Ok(Tree::Bytes(bytes.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Tree::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Tree::Map(pairs))
    }
}

impl Serialize for Tree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nil | Self::Odd => serializer.serialize_unit(),
            Self::Flag(flag) => serializer.serialize_bool(*flag),
            Self::Whole(number) => match u64::try_from(*number) {
                Ok(number) => serializer.serialize_u64(number),
                Err(_) => serializer.serialize_i64(i64::try_from(*number).unwrap_or(i64::MIN)),
            },
            Self::Float(bits) => serializer.serialize_f64(f64::from_bits(*bits)),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Bytes(bytes) => serializer.serialize_bytes(bytes),
            Self::List(items) => {
                let mut seq = serializer.serialize_seq(Some(items.len()))?;
                items.iter().try_for_each(|item| seq.serialize_element(item))?;
                seq.end()
            }
            Self::Map(pairs) => {
                let mut map = serializer.serialize_map(Some(pairs.len()))?;
                pairs.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
                map.end()
            }
        }
    }
}
