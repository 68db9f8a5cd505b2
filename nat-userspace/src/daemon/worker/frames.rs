//! Frames: received, judged by the core, sent, and never sent before the entries that their answers need.

use std::time::Instant;

use nat_common::Reason;
use nat_common::vlan::Tags;
use xdp::Packet;

use super::super::vlans::Place;
use super::Worker;
use crate::gateway::{Emission, Outcome};
use crate::slowpath::{Port, retag};

/// Rounds of frames served before anything else is looked at again.
const ROUNDS: usize = 16;

impl Worker {
    /// Serves what the sockets have, a bounded number of rounds.
    pub(super) fn serve_frames(&mut self) {
        for _ in 0..ROUNDS {
            let mut any = false;
            for index in 0..self.ports.len() {
                let now = Instant::now();
                let port = &mut self.ports[index];
                let ifindex = port.ifindex;
                if port.receive(&mut self.frames, &mut self.packets) == 0 {
                    continue;
                }
                any = true;
                // What the program opened before it sent these up is known before they are judged.
                self.gateway.read_reports(&mut self.kernel, now);
                // Likewise what it tells of packets: a trace is in their order.
                self.read_traces();
                let mut packets = std::mem::take(&mut self.packets);
                for packet in &mut packets {
                    self.gateway.expect(&self.kernel, ifindex, packet);
                }
                for mut packet in packets.drain(..) {
                    let interface = self.interface_of(ifindex, &packet);
                    let noted = self.note(interface, &packet);
                    let outcome = self.gateway.handle(&mut self.kernel, now, interface, &mut packet);
                    if let Some(noted) = noted {
                        self.tell(noted, interface, outcome, &packet);
                    }
                    self.judged.push((packet, ifindex, outcome));
                }
                self.packets = packets;
                self.settle(now);
            }
            if !any {
                break;
            }
        }
    }

    /// Brings the kernel's table in line with what was judged, then sends: a frame never leaves
    /// before the entries that its answer needs.
    pub(super) fn settle(&mut self, now: Instant) {
        let failed = self.kernel.datapath.flows.flush();
        for &session in &failed {
            self.gateway.abort(&mut self.kernel, now, session);
        }
        let mut judged = std::mem::take(&mut self.judged);
        for (packet, ingress, outcome) in judged.drain(..) {
            match outcome {
                Outcome::Send { ifindex, session }
                    if session.is_none_or(|session| !failed.contains(&session)) =>
                {
                    self.send(ifindex, packet);
                }
                Outcome::ToStack => {
                    self.inject(ingress, &packet);
                    self.frames.free(packet);
                }
                _ => self.frames.free(packet),
            }
        }
        self.judged = judged;
        for released in std::mem::take(&mut self.gateway.released) {
            self.tell_of_released(&released);
            match released.outcome {
                Outcome::Send { ifindex, session }
                    if session.is_none_or(|session| !failed.contains(&session)) =>
                {
                    self.transmit(vec![Emission { ifindex, frame: released.frame }]);
                }
                Outcome::ToStack => {
                    let (device, _) = self.place_of(released.ingress);
                    self.inject(device, &released.frame);
                }
                _ => {}
            }
        }
        let emissions = std::mem::take(&mut self.gateway.emissions);
        for emission in &emissions {
            self.tell_of_emission(emission);
        }
        self.transmit(emissions);
        self.hub.deliver(&mut self.gateway.events);
        for port in &mut self.ports {
            port.flush(&mut self.frames);
        }
    }

    fn send(&mut self, ifindex: u32, mut packet: Packet) {
        let (device, tags) = self.place_of(ifindex);
        let port = self.ports.iter_mut().find(|port| port.ifindex == device);
        let Some(port) = port.filter(|_| retag(&mut packet, tags)) else {
            self.transmit_failures += 1;
            return self.frames.free(packet);
        };
        if let Err(packet) = port.send(packet) {
            self.transmit_failures += 1;
            self.frames.free(packet);
        }
    }

    pub(super) fn transmit(&mut self, emissions: Vec<Emission>) {
        for Emission { ifindex, frame } in emissions {
            match self.frames.copy(&frame) {
                Some(packet) => self.send(ifindex, packet),
                None => self.transmit_failures += 1,
            }
        }
    }

    fn inject(&self, ingress: u32, frame: &[u8]) {
        if let Err(error) = self.kernel.datapath.inject(ingress, frame) {
            tracing::debug!(%error, "a frame could not be handed to the stack");
        }
    }

    /// The interface that a frame from a device belongs to: the device's own, or that of its VLAN.
    fn interface_of(&self, device: u32, frame: &[u8]) -> u32 {
        let tags = Tags::of_frame(frame).unwrap_or_default().vlan();
        if tags.is_empty() {
            return device;
        }
        let of_vlan = |place: &Place| place.device.index == device && place.tags.vlan() == tags;
        let served = self.served.iter().find(|served| served.place.as_ref().is_some_and(of_vlan));
        // A VLAN that has just gone is nobody's, and never its device's.
        served.and_then(|served| served.ifindex).unwrap_or(0)
    }

    /// The device that an interface's frames pass, and their tags there.
    pub(in crate::daemon) fn place_of(&self, ifindex: u32) -> (u32, Tags) {
        let served = self.served.iter().find(|served| served.ifindex == Some(ifindex));
        let place = served.and_then(|served| served.place.as_ref());
        place.map_or((ifindex, Tags::NONE), |place| (place.device.index, place.tags))
    }

    /// Packets counted by reason: by the fast path on all CPUs, and by the core.
    pub fn count(&self, reason: Reason) -> u64 {
        let kernel: u64 = self
            .kernel
            .datapath
            .counters
            .get(&reason.index(), 0)
            .map(|values| values.iter().sum())
            .unwrap_or_default();
        let own = match reason {
            Reason::DropTransmit => self.transmit_failures,
            // Counted as punted, and lost on the way.
            Reason::DropNoDaemon => self.lost_frames(),
            _ => 0,
        };
        kernel + own + self.gateway.counts().get(reason)
    }

    /// Frames that found no room in the daemon's rings.
    pub fn lost_frames(&self) -> u64 {
        self.ports.iter().map(Port::lost).sum()
    }
}
