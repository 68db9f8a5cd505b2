//! The lab tier: natgw between real kernels, judged by what passes on the wires.
//!
//! Tests are named after the behaviour they prove. Each builds its own lab and can run beside others.

mod selftest;
mod stage;

mod det;
mod dlg;
mod exh;
mod map;
mod one;
mod pol;
mod prt;

mod flt;
mod hpn;
mod lbs;
mod lbs_real;
mod lbs_relay;
mod lbs_schedulers;
mod loc;
mod pfw;

mod atk;
mod l2x;
mod l2x_vlans;
mod mal;

mod tcp;
mod tcp_end;
mod tcp_kernels;
mod tcp_mss;
mod tmu;

mod real_time;

mod cks;
mod frg;
mod frg_bad;
mod frg_paths;
mod ice;
mod ice_inside;
mod icq;
mod judges;
mod rtr;
mod rtr_mtu;
mod stn;

mod faults;
mod guides;
mod layouts;
mod log;
mod log_ipfix;
mod log_records;
mod metrics;
mod ops;
mod ops_convert;
mod ops_doctor;
mod ops_doctor_segments;
mod ops_host;
mod ops_keys;
mod ops_many;
mod ops_options;
mod ops_reload;
mod ops_restart;
mod ops_rules;
mod ops_supervised;
mod ops_top;
mod ops_trace;
mod ops_watch;
mod privileges;
mod starts;
mod torture;

mod s000;
mod s001;
mod s002;
mod s004;
