"""Sends, as root of a guest, one frame of each kind that a guest must not send. Prints how many.

Arguments: own address, gateway's address and MAC, another guest's address and MAC; then how the kinds to
send begin, if not all.
"""
import socket, struct, sys

own, gateway, gateway_mac, victim, victim_mac, *kinds = sys.argv[1:]
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(("eth0", 0))
me = link.getsockname()[4]
mac = lambda text: bytes.fromhex(text.replace(":", ""))
ip = socket.inet_aton
gw, other, all_hosts = mac(gateway_mac), mac(victim_mac), b"\xff" * 6


def ether(to, sender, kind, rest):
    return (to + sender + struct.pack("!H", kind) + rest).ljust(60, b"\0")


def packet(source, target, protocol, data, options=b"", fragment=0):
    words = 5 + len(options) // 4
    head = struct.pack("!BBHHHBBH4s4s", 0x40 | words, 0, words * 4 + len(data), 7, fragment, 64, protocol, 0,
                       ip(source), ip(target)) + options
    total = sum(struct.unpack("!%dH" % (len(head) // 2), head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:] + data


def udp(source, target, data=b"mark"):
    return struct.pack("!HHHH", source, target, 8 + len(data), 0) + data


def arp(operation, sender_mac, sender, target_mac, target):
    return struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + sender_mac + ip(sender) + target_mac + ip(target)


def dhcp(kind, hardware, client="0.0.0.0", operation=1):
    head = struct.pack("!BBBBIHH4s4s4s4s", operation, 1, 6, 0, 77, 0, 0, ip(client), ip("0.0.0.0"), ip(gateway), ip("0.0.0.0"))
    options = b"\x63\x82\x53\x63" + bytes([53, 1, kind, 50, 4]) + ip(victim) + bytes([54, 4]) + ip(gateway) + b"\xff"
    return head + hardware.ljust(16, b"\0") + b"\0" * 192 + options


def ipv6(source, target, next_header, data):
    six = lambda a: socket.inet_pton(socket.AF_INET6, a)
    return struct.pack("!IHBB", 0x60000000, len(data), next_header, 255) + six(source) + six(target) + data


to_dns = udp(40000, 53)
honest = packet(own, gateway, 17, to_dns)
discover = udp(68, 67, dhcp(1, other))
frames = {
    "an address of another": ether(gw, me, 0x0800, packet(victim, gateway, 17, to_dns)),
    "a MAC of another": ether(gw, other, 0x0800, honest),
    "both of another": ether(gw, other, 0x0800, packet(victim, gateway, 17, to_dns)),
    "the gateway's MAC": ether(all_hosts, gw, 0x0800, honest),
    "the gateway's address": ether(gw, me, 0x0800, packet(gateway, gateway, 17, to_dns)),
    "an address of no zone": ether(gw, me, 0x0800, packet("192.168.50.20", "8.8.8.8", 17, to_dns)),
    "ARP: the other is here": ether(gw, me, 0x0806, arp(2, me, victim, gw, gateway)),
    "ARP: the gateway is here": ether(all_hosts, me, 0x0806, arp(2, me, gateway, all_hosts, gateway)),
    "ARP: gratuitous": ether(all_hosts, me, 0x0806, arp(1, me, victim, b"\0" * 6, victim)),
    "ARP: asks in another's name": ether(all_hosts, me, 0x0806, arp(1, other, victim, b"\0" * 6, gateway)),
    "ARP: own address, another's MAC": ether(gw, me, 0x0806, arp(2, other, own, gw, gateway)),
    "ARP: from another's MAC": ether(gw, other, 0x0806, arp(2, me, own, gw, gateway)),
    "DHCP: asks for another": ether(all_hosts, me, 0x0800, packet("0.0.0.0", "255.255.255.255", 17, discover)),
    "DHCP: releases another's lease": ether(gw, me, 0x0800, packet(own, gateway, 17, udp(68, 67, dhcp(7, other, victim)))),
    "DHCP: declines another's lease": ether(gw, me, 0x0800, packet(own, gateway, 17, udp(68, 67, dhcp(4, other)))),
    "DHCP: without the hardware address": ether(gw, me, 0x0800, packet(own, gateway, 17, udp(68, 67), fragment=0x2000)),
    "DHCP: serves": ether(all_hosts, me, 0x0800, packet(own, "255.255.255.255", 17, udp(67, 68, dhcp(2, other, operation=2)))),
    "IPv6: router advertisement": ether(mac("333300000001"), me, 0x86DD, ipv6("fe80::1", "ff02::1", 58, bytes([134, 0, 0, 0] + [64, 0, 7, 8] + [0] * 8))),
    "IPv6: link-local": ether(gw, me, 0x86DD, ipv6("fe80::2", "fe80::1", 17, to_dns)),
    "IPv6: unique local": ether(gw, me, 0x86DD, ipv6("fd00::2", "fd00::1", 17, to_dns)),
    "IPv6: neighbour advertisement": ether(gw, me, 0x86DD, ipv6("fe80::2", "fe80::1", 58, bytes([136, 0, 0, 0] + [0x20, 0, 0, 0]) + b"\0" * 16)),
    "VLAN 1": ether(gw, me, 0x8100, struct.pack("!HH", 1, 0x0800) + honest),
    "VLAN 0": ether(gw, me, 0x8100, struct.pack("!HH", 0, 0x0800) + honest),
    "VLAN in a VLAN": ether(gw, me, 0x88A8, struct.pack("!HHHH", 1, 0x8100, 2, 0x0800) + honest),
    "spanning tree": ether(mac("0180c2000000"), me, 38, b"\x42\x42\x03" + b"\0" * 35),
    "LLDP": ether(mac("0180c200000e"), me, 0x88CC, b"\x02\x07\x04" + me + b"\0\0"),
    "MPLS": ether(gw, me, 0x8847, struct.pack("!I", 0x00010140) + honest),
    "PPPoE discovery": ether(all_hosts, me, 0x8863, b"\x11\x09\0\0\0\0"),
    "multicast": ether(mac("01005e0000fb"), me, 0x0800, packet(own, "224.0.0.251", 17, udp(5353, 5353))),
    "loose source route": ether(gw, me, 0x0800, packet(own, gateway, 17, to_dns, b"\x83\x07\x04" + ip(victim) + b"\0")),
    "strict source route": ether(gw, me, 0x0800, packet(own, gateway, 17, to_dns, b"\x89\x07\x04" + ip(victim) + b"\0")),
    "record route": ether(gw, me, 0x0800, packet(own, gateway, 17, to_dns, b"\x07\x07\x04" + b"\0" * 5)),
}
chosen = [frame for kind, frame in frames.items() if kind.startswith(tuple(kinds or [""]))]
for frame in chosen:
    link.send(frame)
print(len(chosen))
