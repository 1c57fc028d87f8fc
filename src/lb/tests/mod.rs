//! Every table in a cluster that loses, reorders and repeats what is sent, whose nodes are cut off, crash and
//! return: in the end all see the same. Then the rules one by one.
//!
//! `converge` on the `model` of a cluster · `rules` one by one · `many` flows, page by page · `foreign` values
//! that are not of a table's type

mod converge;
mod foreign;
mod many;
mod model;
mod rules;
