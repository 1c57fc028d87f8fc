//! Everything at once.

use super::secs;
use crate::sim::{seeds, storm::storm};

#[test]
fn a_cluster_in_a_storm_comes_to_agree() {
    seeds(0..6, |world| {
        storm(world, 32, secs(120), None);
    });
}
