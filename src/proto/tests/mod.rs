//! The core's rules, one by one, by handing it bytes and looking at what comes out. Whole clusters are
//! `sim`'s.

mod bad_input;
mod distrust;
mod lists;
mod membership;
mod models;
mod repair;
mod returns;
mod signatures;
mod small_worlds;
mod spread;
mod state;
