"""Endpoints: daemons that keep objects for their host and fetch them from each other, also through NAT.

    client --unix socket--> endpoint ==WebRTC data channel==> endpoint <--unix socket-- client
                               `------ relay (introduces) ------'

`wire` is what is said on sockets and channels, `settings` what an endpoint knows of itself, `objects` what it
keeps, `introductions` its line to the relay, `channel` and `peers` its lines to other endpoints, `clients`
its door for local processes, `lines` their connections to it, `daemon` all of these together. `relay` is a
server of its own.
"""
