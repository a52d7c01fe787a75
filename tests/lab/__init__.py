"""The lab: real hosts, real guests and real live migrations on one machine.

Each host is a set of namespaces with its own libvirtd, SMBIOS, host-only bridge and enabler; each
guest is a Debian userland under libvirt and QEMU (TCG, so it runs anywhere), with `guest-client`
installed from the built wheel. It needs root and what `packages.txt` lists.

A tour:

    with Lab(hosts=2, guests=1) as lab:
        a, b = lab.hosts
        vm, = lab.guests                                # starts on host-a

        vm.run(["guest-client", "identity"]).stdout     # any command, to its end
        scan = vm.spawn(["guest-client", "scan", …])    # or started, and waited for later
        lab.migrate(vm, to=b)                           # live; `postcopy=True` too
        scan.wait().returncode                          # on whichever host it ends

        with lab.start_slow(vm, to=a) as move:          # in progress, still on b …
            …
            move.abort()                                # … or .finish()

        a.enabler.stop(); a.enabler.kill(); a.enabler.restart(); a.enabler.freeze()
        a.restart_libvirtd(kill=True); a.libvirtd.freeze(); a.unplug()
        a.run("enabler", "doctor"); a.admin_get("/v1/vms").json()

        path = vm.save(); vm.restore(a, path); vm.suspend(); vm.resume(); vm.reboot()
        vm.set_vcpus(2); vm.domain.setMemory(…)         # libvirt-python, on the host it is on

        lab.events(vm)                                  # what libvirt itself says happened
        lab.settle()                                    # everything back as it was at first

`up` first removes what a killed lab left behind. For people: `python -m tests.lab --help`. After
`down` the logs are in `.cache/lab/last-logs`.

Modules, each knowing only those above it:

    errors, progress, commands, cache      basics
    wheels, images                         what guests boot from
    smbios, network, processes, state      what hosts are made of; what is written down
    events, host                           a host, and libvirt's own account of what happens on it
    agent, jobs, guest                     a guest, and running commands in it across migrations
    migration, lab                         all together
"""
