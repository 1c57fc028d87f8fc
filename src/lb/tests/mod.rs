//! Every table in a cluster that loses, reorders and repeats what is sent, whose nodes are cut off, crash and
//! return: in the end all see the same. Then the rules one by one.

mod converge;
mod model;
mod rules;
