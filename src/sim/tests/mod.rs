//! What must come of a cluster, whatever happens to it: each test a sentence, in worlds of several sim seeds.

mod world;
