//! Topology and limits of the machine.
