"""Knocks, as root of a guest, at every port of some addresses by frames of its own, by TCP and UDP, and at a few in
fragments. Prints who answered: protocol, address, port.

Arguments: own address, gateway's MAC, then addresses; those of other guests are tried in fragments alone after `--`.
"""
import select, socket, struct, sys, time

own, gateway_mac, *rest = sys.argv[1:]
cut = rest.index("--")
targets, guests = rest[:cut], rest[cut + 1:]
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
link.bind(("eth0", 0))
link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
head = bytes.fromhex(gateway_mac.replace(":", "")) + link.getsockname()[4] + b"\x08\x00"
query = b"\x4d\x2a\1\0\0\1\0\0\0\0\0\0\7gateway\4prox\5local\0\0\1\0\1"
SOURCE = 40999
heard = set()


def total(data):
    value = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while value >> 16:
        value = (value & 0xFFFF) + (value >> 16)
    return value


def frame(target, protocol, data, fragment=0, number=7):
    words = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(data), number, fragment, 64, protocol, 0,
                        socket.inet_aton(own), socket.inet_aton(target))
    return head + words[:10] + struct.pack("!H", ~total(words) & 0xFFFF) + words[12:] + data


def syn(target, port):
    segment = struct.pack("!HHIIBBHHH", SOURCE, port, 1, 0, 0x50, 2, 1024, 0, 0)
    pseudo = socket.inet_aton(own) + socket.inet_aton(target) + struct.pack("!HH", 6, 20)
    return segment[:16] + struct.pack("!H", ~total(pseudo + segment) & 0xFFFF) + segment[18:]


def udp(port):
    return struct.pack("!HHHH", SOURCE, port, 8 + len(query), 0) + query


def listen(seconds):
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 or seconds == 0:
        ready, _, _ = select.select([link], [], [], max(left, 0))
        if not ready:
            return
        answer, where = link.recvfrom(2048)
        if where[2] == socket.PACKET_OUTGOING or len(answer) < 34 + 14:
            continue
        protocol, source = answer[23], socket.inet_ntoa(answer[26:30])
        sport, dport = struct.unpack("!HH", answer[34:38])
        if protocol == 6 and dport == SOURCE and answer[47] & 0x12 == 0x12:
            heard.add(("tcp", source, sport))
        if protocol == 17 and dport == SOURCE:
            heard.add(("udp", source, sport))


for target in targets:
    for port in range(1, 65536):
        link.send(frame(target, 6, syn(target, port)))
        if port % 256 == 0:
            listen(0)
    for port in range(1, 65536):
        link.send(frame(target, 17, udp(port)))
        if port % 256 == 0:
            listen(0)
# Headers in pieces: the first piece of eight bytes has the ports and no more.
number = 100
for target, protocol, data in (
    [("10.20.0.1", 17, udp(53))] + [(g, 6, syn(g, p)) for g in guests for p in (22, 80, 39383)] + [("10.20.0.1", 6, syn("10.20.0.1", 9090))]
):
    number += 1
    link.send(frame(target, protocol, data[:8], 0x2000, number))
    link.send(frame(target, protocol, data[8:], 1, number))
# What is open answers late on a busy machine: it is asked again.
for _ in range(3):
    link.send(frame("10.20.0.1", 6, syn("10.20.0.1", 53)))
    listen(1)
for protocol, address, port in sorted(heard):
    print(protocol, address, port)
