"""Runs commands on many hosts by paramiko or asyncssh, and prints how many milliseconds that took.

Arguments: client, port, key file, known_hosts, commands for each host, hosts. Each host gets one connection, and its
commands one after the other; all hosts at the same time.
"""

import sys
import time


def by_paramiko(port, key, known, count, hosts):
    from concurrent.futures import ThreadPoolExecutor

    import paramiko

    def one(host):
        client = paramiko.SSHClient()
        client.load_host_keys(known)
        client.connect(host, port, "root", key_filename=key, allow_agent=False, look_for_keys=False)
        for _ in range(count):
            _, out, _ = client.exec_command("/bin/true")
            assert out.channel.recv_exit_status() == 0
        client.close()

    with ThreadPoolExecutor(len(hosts)) as pool:
        list(pool.map(one, hosts))


def by_asyncssh(port, key, known, count, hosts):
    import asyncio

    import asyncssh

    async def one(host):
        options = {"username": "root", "client_keys": [key], "known_hosts": known, "agent_path": None, "config": None}
        async with asyncssh.connect(host, port, **options) as connection:
            for _ in range(count):
                await connection.run("/bin/true", check=True)

    async def all_of_them():
        await asyncio.gather(*(one(host) for host in hosts))

    asyncio.run(all_of_them())


def main():
    client, port, key, known, count, *hosts = sys.argv[1:]
    run = {"paramiko": by_paramiko, "asyncssh": by_asyncssh}[client]
    began = time.monotonic()
    run(int(port), key, known, int(count), hosts)
    print((time.monotonic() - began) * 1000)


main()
