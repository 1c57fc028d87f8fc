//! Inputs to begin with: real examples of all that is read, for each target. What two cores say to one another comes
//! first, then one of every kind, so that a fuzzer need not guess how a message is made.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{
    core::{introduction, settled},
    input::Input,
    node::Node,
};
use crate::{
    Options, StateType, Value,
    proto::{
        Output, StreamInput,
        fixtures::{at, id},
    },
    wire::{StreamId, codec, message::kind},
};

/// Examples for the target of that name.
#[must_use]
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "message" => messages(),
        "frames" => frames(),
        "hello" => hellos(),
        "value" => values(),
        "script" => scripts(),
        "config" => configs(),
        "pem" | "crl" | "spiffe" => certificates(target),
        _ => Vec::new(),
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| rng.u8(..)).collect()
}

/// What two cores say in the first seconds of their acquaintance: messages, and frames by stream.
fn talk() -> (Vec<Bytes>, Vec<Vec<Bytes>>) {
    let mut ends = [settled(), Node::new("b", |_| ())];
    let said = [ends[0].core.introduction(None), ends[1].core.introduction(None)];
    ends[0].connect(&id("b"), &said[1], at(10));
    ends[1].connect(&id("a"), &said[0], at(10));
    for key in ["k1", "k2", "k3"] {
        let value = Value::from_checked(Bytes::from_static(b"\xa2up"));
        let written =
            ends[1].core.broadcast(&StateType::shared("routes"), key, value, Options::default(), at(11));
        assert!(written.is_ok());
    }
    let (mut messages, mut frames) = (Vec::new(), BTreeMap::<_, Vec<Bytes>>::new());
    for ms in 12..4_000 {
        for from in [0, 1] {
            ends[from].wake(at(ms));
            let (me, peer) = (id(["a", "b"][from]), id(["b", "a"][from]));
            for output in ends[from].settle() {
                let to = 1 - from;
                // Each numbers what it opens by odd numbers; the other knows it by the next.
                let twin =
                    |stream: StreamId| StreamId(if stream.0 % 2 == 1 { stream.0 + 1 } else { stream.0 - 1 });
                match output {
                    Output::Send { to: receiver, bytes } => {
                        if receiver == peer {
                            ends[to].core.handle_message(&me, &bytes, at(ms));
                        }
                        messages.push(bytes);
                    }
                    Output::OpenStream { to: receiver, stream } if receiver == peer => {
                        ends[to].stream(&me, twin(stream), StreamInput::Opened, at(ms));
                    }
                    Output::Frame { stream, bytes } => {
                        frames.entry((from, stream)).or_default().push(bytes.clone());
                        ends[from].stream(&peer, stream, StreamInput::Sent, at(ms));
                        ends[to].stream(&me, twin(stream), StreamInput::Frame(bytes), at(ms));
                    }
                    Output::Finish { stream } => {
                        ends[to].stream(&me, twin(stream), StreamInput::Finished, at(ms));
                    }
                    _ => {}
                }
            }
        }
    }
    (messages, frames.into_values().collect())
}

/// The kinds of parts in a packet.
fn kinds(packet: &Bytes) -> Vec<u8> {
    codec::parts(packet).unwrap_or_default().into_iter().map(|(kind, _)| kind).collect()
}

/// Packets made of noise until there is one of every kind.
fn one_of_each(wanted: &[u8], make: impl Fn(&mut Input<'_>) -> Bytes) -> Vec<Bytes> {
    let mut missing: BTreeSet<u8> = wanted.iter().copied().collect();
    let mut found = Vec::new();
    for seed in 0..10_000 {
        let noise = noise(seed, 512);
        let packet = make(&mut Input::new(&noise));
        let has = kinds(&packet);
        if has.iter().any(|kind| missing.contains(kind)) {
            missing.retain(|kind| !has.contains(kind));
            found.push(packet);
        }
    }
    assert!(missing.is_empty(), "no part of kind {missing:?} was made");
    found
}

#[expect(
    clippy::redundant_closure_for_method_calls,
    reason = "the method is of one lifetime, the closure of any"
)]
fn messages() -> Vec<Vec<u8>> {
    let mut seen = BTreeSet::new();
    let real = talk().0.into_iter().filter(|packet| seen.insert(kinds(packet)));
    let wanted: Vec<u8> = (kind::PING..=kind::GONE).collect();
    let made = one_of_each(&wanted, |input| input.message());
    real.chain(made).map(|packet| [&[0], &packet[..]].concat()).collect()
}

#[expect(
    clippy::redundant_closure_for_method_calls,
    reason = "the method is of one lifetime, the closure of any"
)]
fn frames() -> Vec<Vec<u8>> {
    let wanted = [
        kind::OPEN,
        kind::WANTS,
        kind::COVERS,
        kind::DONE,
        kind::CLAIM,
        kind::FORGET,
        kind::RECORDS,
        kind::BYGONE,
        kind::ANEW,
    ];
    let made = one_of_each(&wanted, |input| input.frame());
    let streams = talk().1.into_iter().chain([made]);
    streams
        .map(|frames| {
            let mut input = b"\x05\x00\xff\x30\x01\xf7\x02\x40".to_vec();
            for frame in frames {
                input.extend(u32::try_from(frame.len()).unwrap_or(u32::MAX).to_be_bytes());
                input.extend(frame);
            }
            input
        })
        .collect()
}

fn hellos() -> Vec<Vec<u8>> {
    let real = [introduction("b", 0), introduction("e", 7), settled().core.introduction(Some(&id("b")))];
    let real = real.iter().map(|said| [vec![0], codec::encode(said)].concat());
    real.chain((0..4).map(|seed| [vec![1], noise(seed, 128)].concat())).collect()
}

/// One of every marker, and some inside one another.
fn values() -> Vec<Vec<u8>> {
    let all = (0x7f..=0xe0).map(|marker: u8| [&[marker][..], &[0, 0, 0, 1], &[0x01; 20]].concat());
    let nested = [
        codec::encode(&("up", 1.5_f64, -3_i64, [1_u8; 3], None::<u8>, true)),
        codec::encode(&BTreeMap::from([("a", vec![Some(1_u64), None]), ("b", vec![Some(u64::MAX)])])),
        codec::encode(&serde_bytes::Bytes::new(&[7; 40])),
        [vec![0x91; 32], vec![0xc0]].concat(),
        b"\x81\x00".repeat(33),
    ];
    all.chain(nested).collect()
}

/// Calls in orders that lead somewhere, and any.
fn scripts() -> Vec<Vec<u8>> {
    let write = [24, 0, 0, 1, 0, 0];
    let step = |size: u8| vec![0, 2, size];
    let pass = [6, 5, 0];
    let told = [
        vec![vec![0], vec![4], write.to_vec(), pass.to_vec(), step(4), pass.to_vec(), step(7), pass.to_vec()],
        vec![vec![1], vec![4], write.to_vec(), pass.to_vec(), step(8), pass.to_vec(), step(9), vec![5, 0, 0]],
        vec![vec![0x37], write.to_vec(), vec![4], pass.to_vec(), step(8), step(9), step(10), pass.to_vec()],
    ];
    let told = told.into_iter().map(|calls| calls.concat());
    told.chain((0..12).map(|seed| noise(seed, 64 << (seed % 4)))).collect()
}

fn configs() -> Vec<Vec<u8>> {
    let file = "[cluster]\nenabled = true\nnode-id = 'a'\nbind-address = '127.0.0.1'\nbind-port = 7946\n\
        seeds = ['lb-2.example:7946', '[::1]:7946']\ngossip-interval-ms = 200\ngossip-fanout = 2\n\
        push-pull-interval-ms = 10000\nmax-batch-size = 100\nzone = 'east'\nadvertise-address = '10.0.0.1'\n\
        ping-interval-ms = 1000\nping-timeout-ms = 500\nping-req-count = 3\nsuspicion-mult = 3\n\
        fast-detection = false\nsync-health = true\nsync-circuit-breaker = true\nsync-drain = true\n\
        sync-conntrack = false\ndead-node-reclaim-ms = 86400000\ntombstone-ttl-ms = 86400000\n\
        max-connections = 512\n[cluster.tags]\nrole = 'edge'\n[cluster.tls]\nca = 'ca.pem'\ncert = 'cert.pem'\n\
        key = 'key.pem'\ncrl = 'crl.pem'\nshared-certificate = false\n[other]\nkey = 1\n";
    let faulty =
        "[cluster]\nbind-prot = 'x'\nbind-port = 70000\nseeds = 7\ntags = [1]\nzone = \"\"\ntls.ca = 3\n";
    let variables = "PHALANX_NODE_ID=a\nPHALANX_BIND_PORT=0\nPHALANX_SEEDS=a:1,b:2\nPHALANX_TAGS=a=b,c=d\n\
        PHALANX_TLS_CA=ca.pem\nPHALANX_PING_INTERVALL_MS=5\nOTHER=1";
    [(0, file), (0, faulty), (1, variables)].map(|(kind, text)| [&[kind], text.as_bytes()].concat()).to_vec()
}

fn certificates(target: &str) -> Vec<Vec<u8>> {
    let own = &*super::files::OWN;
    let (leaf, root) = (&own.identity.chain()[0][..], &own.identity.roots()[0][..]);
    let listed = own.identity.clone().with_crl_pem(&own.crl).expect("the authority's own list");
    let list = &listed.crls()[0][..];
    let with = |kind: u8, bytes: &[u8]| [&[kind], bytes].concat();
    let block = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    let size = |der: &[u8]| u16::try_from(der.len()).unwrap_or(u16::MAX).to_be_bytes();
    match target {
        "pem" => vec![
            with(0, b"@CA@\x1c@CERT@\x1c@KEY@"),
            with(0, b"@CERT@@CA@\x1c@CERT@@CA@\x1cnoise\n@KEY@"),
            with(0, b"@KEY@\x1c@CRL@\x1c@CERT@"),
            with(0, format!("{0}\x1c{0}\x1c{1}", block("CERTIFICATE"), block("PRIVATE KEY")).as_bytes()),
            with(0, format!("@CA@\x1c@CERT@\x1c{}", block("EC PRIVATE KEY")).as_bytes()),
            with(1, root),
            with(1, leaf),
            with(2, leaf),
            with(2, root),
            with(3, &[&size(leaf)[..], leaf].concat()),
            with(3, &[&size(leaf)[..], leaf, &size(root)[..], root].concat()),
        ],
        "crl" => vec![
            with(0, b"@CRL@"),
            with(0, b"@CA@@CRL@@CRL@"),
            with(0, block("X509 CRL").as_bytes()),
            with(1, list),
        ],
        _ => vec![
            with(0, b"spiffe://edge/node/lb-1.fra"),
            with(0, b"spiffe://edge/shared"),
            with(0, b"spiffe://Edge/node/../x"),
            with(1, leaf),
            with(1, root),
        ],
    }
}
