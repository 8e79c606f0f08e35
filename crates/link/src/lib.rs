//! The controller's end of the way into guests: who guests and relays are (certificates), what may be
//! asked of them (tokens), and connections to them through their zone's relay.
