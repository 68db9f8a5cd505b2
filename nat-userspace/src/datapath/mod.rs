//! The kernel side as the daemon sees it: the loaded programs, their maps, and where they are
//! pinned so that they outlive the daemon.

mod attach;
mod claims;
mod delegation;
mod filters;
mod flows;
mod forwards;
mod grace;
mod held;
mod index;
mod layout;
mod lender;
mod mapped;
mod migrate;
mod narrow;
mod object;
mod programs;
mod sets;
mod traced;

pub use self::attach::{AttachError, Attached};
pub use self::claims::{Claims, Endpoint, Held, SharedPorts};
pub use self::delegation::Delegation;
pub use self::flows::{FlowTable, Found, capacity};
pub use self::forwards::publish_forwards;
pub use self::held::Listing;
pub use self::mapped::Mapped;
pub use self::narrow::publish_narrow;
pub use self::object::{Datapath, LoadError, ticks};
pub use self::sets::publish_rules;
pub use self::traced::{Beside, Traced};
