//! The services that agents and operators call, and who may call what.

pub mod agent;
pub mod authorise;
pub mod control;
pub mod fleet;
pub mod maintenance;
pub mod wire;
