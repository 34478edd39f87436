//! activations: in the making.
