"""The enabler: tells each virtual machine on a hypervisor host which real machine it runs on."""
