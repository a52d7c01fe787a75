"""Capacity out of libvirt's documents, for machines even and odd."""

from __future__ import annotations

from collections.abc import Iterator

import libvirt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enabler.capacity import Capacity, measure
from enabler.errors import HypervisorError

GIB = 1 << 30
SMALL = st.integers(1, 5)


def capabilities(*cells: str, cpu: str = "") -> str:
    return (
        f"<capabilities><host><cpu>{cpu}</cpu><topology><cells num='{len(cells)}'>"
        + "".join(cells)
        + "</cells></topology></host><guest/></capabilities>"
    )


def cell(cpus: str, gib: int = 1) -> str:
    return (
        f"<cell id='0'><memory unit='KiB'>{gib << 20}</memory>"
        f"<pages unit='KiB' size='4'>2048</pages><cpus>{cpus}</cpus></cell>"
    )


def cpu(number: int, socket: int, core: int, siblings: str | None = None, die: int = 0) -> str:
    with_siblings = f" siblings='{siblings}'" if siblings else ""
    return (
        f"<cpu id='{number}' socket_id='{socket}' die_id='{die}' core_id='{core}'{with_siblings}/>"
    )


def even_socket(socket: int, cores: int, threads: int, *, siblings: bool = True) -> list[str]:
    """The CPUs of one socket, numbered without a gap; core IDs start anew in each socket."""
    first = socket * cores * threads
    return [
        cpu(
            first + core * threads + thread,
            socket,
            core,
            f"{first + core * threads}-{first + core * threads + threads - 1}"
            if siblings
            else None,
        )
        for core in range(cores)
        for thread in range(threads)
    ]


def counted(capacity: Capacity) -> tuple[int, int, int]:
    return capacity.sockets, capacity.cores_per_socket, capacity.threads_per_core


class TestTopology:
    @given(
        st.integers(1, 4), st.integers(1, 8), st.integers(1, 8), st.integers(1, 4), st.booleans()
    )
    def test_of_an_even_machine_however_its_sockets_lie_in_numa_nodes(
        self, sockets: int, cores: int, threads: int, nodes: int, siblings: bool
    ) -> None:
        cpus = [
            text
            for socket in range(sockets)
            for text in even_socket(socket, cores, threads, siblings=siblings)
        ]
        cells = [cell("".join(cpus[node::nodes])) for node in range(nodes)]
        found = measure(capabilities(*cells))
        assert counted(found) == (sockets, cores, threads)
        assert found.memory_bytes == nodes * GIB

    def test_of_one_socket_with_two_numa_nodes(self) -> None:
        """AMD NPS2: the same socket in both nodes."""
        cpus = even_socket(0, 8, 2)
        xml = capabilities(cell("".join(cpus[:8]), 64), cell("".join(cpus[8:]), 64))
        assert counted(measure(xml, ["x86_64", 131072, 16, 2400, 2, 1, 4, 2])) == (1, 8, 2)

    def test_of_a_power_machine_with_smt8(self) -> None:
        cpus = [
            cpu(8 * c + t, 0, 8 * c, f"{8 * c}-{8 * c + 7}") for c in range(10) for t in range(8)
        ]
        assert counted(measure(capabilities(cell("".join(cpus))))) == (1, 10, 8)

    def test_counts_threads_that_are_offline_everywhere(self) -> None:
        """KVM on POWER8: SMT is off in the host; libvirt's node info knows the eight threads."""
        cpus = [
            cpu(8 * c, 0, 8 * c, str(8 * c))
            + "".join(f"<cpu id='{8 * c + t}'/>" for t in range(1, 8))
            for c in range(10)
        ]
        xml = capabilities(cell("".join(cpus)))
        assert counted(measure(xml, ["ppc64le", 1024, 80, 3425, 1, 1, 10, 8])) == (1, 10, 8)
        assert counted(measure(xml)) == (1, 10, 1)

    def test_does_not_count_cores_that_are_offline(self) -> None:
        cpus = [*even_socket(0, 4, 2)[:6], "<cpu id='6'/>", "<cpu id='7'/>"]
        assert counted(measure(capabilities(cell("".join(cpus))))) == (1, 3, 2)

    def test_takes_the_largest_where_sockets_differ(self) -> None:
        cpus = [*even_socket(0, 4, 1), cpu(90, 7, 0, "90,92"), cpu(92, 7, 0, "90,92")]
        assert counted(measure(capabilities(cell("".join(cpus))))) == (2, 4, 2)

    def test_tells_cores_apart_whose_ids_repeat_in_each_die(self) -> None:
        with_siblings = [cpu(n, 0, n % 2, str(n), die=n // 2) for n in range(4)]
        without = [cpu(n, 0, n % 2, die=n // 2) for n in range(4)]
        for cpus in (with_siblings, without):
            assert counted(measure(capabilities(cell("".join(cpus))))) == (1, 4, 1)

    def test_falls_back_on_node_info_whose_sockets_are_per_node(self) -> None:
        found = measure(capabilities(), ["s390x", 4096, 64, 0, 2, 2, 8, 2])
        assert (counted(found), found.memory_bytes) == ((4, 8, 2), 4 * GIB)

    def test_falls_back_on_the_cpu_elements_topology(self) -> None:
        xml = capabilities(
            cell("<cpu id='0'/>"), cpu="<topology sockets='1' dies='2' cores='4' threads='2'/>"
        )
        assert counted(measure(xml)) == (1, 8, 2)

    @pytest.mark.parametrize(
        ("xml", "info"),
        [
            ("<capabilities/>", None),
            ("<capabilities><host/></capabilities>", None),
            (capabilities(cell("<cpu id='0'/>")), None),
            (capabilities("<cell><cpus>" + cpu(0, 0, 0) + "</cpus></cell>"), None),
            (capabilities(), ["x", 0, 1, 0, 1, 1, 1, 1]),
            (capabilities(), ["x", 1024, 1, 0, 0, 0, 0, 0]),
            ("not xml", ["x", 1024, 1, 0, 1, 1, 1, 1]),
            ("<!DOCTYPE x><capabilities/>", ["x", 1024, 1, 0, 1, 1, 1, 1]),
        ],
    )
    def test_that_nobody_tells_is_an_error_that_says_where_to_look(
        self, xml: str, info: list[int | str] | None
    ) -> None:
        with pytest.raises(HypervisorError, match="capabilities"):
            measure(xml, info)


class TestMemory:
    def test_is_that_of_all_nodes_those_without_processors_included(self) -> None:
        cells = cell(cpu(0, 0, 0), 2), "<cell><memory unit='GiB'>3</memory><cpus num='0'/></cell>"
        assert measure(capabilities(*cells)).memory_bytes == 5 * GIB

    def test_is_in_kib_where_no_unit_is_given(self) -> None:
        xml = capabilities(f"<cell><memory>1024</memory><cpus>{cpu(0, 0, 0)}</cpus></cell>")
        assert measure(xml).memory_bytes == 1 << 20


def modules(*sizes: str, kind: str = "DDR4") -> str:
    return (
        "<sysinfo type='smbios'>"
        + "".join(
            f"<memory_device><entry name='size'>{size}</entry><entry name='type'>{kind}</entry>"
            "<entry name='type_detail'>Synchronous</entry></memory_device>"
            for size in sizes
        )
        + "</sysinfo>"
    )


class TestInstalledMemory:
    XML = capabilities(cell(cpu(0, 0, 0), 30))

    @pytest.mark.parametrize(
        ("sysinfo", "gib"),
        [
            (modules("16 GB", "16384 MB"), 32),
            (modules("8 GB"), 30),
            (modules("16 GB", "Unknown"), 30),
            (modules("512 GB", kind="Logical non-volatile device"), 30),
            (modules(), 30),
            ("<broken", 30),
            (
                "<sysinfo><memory_device><entry name='type'>X</entry></memory_device></sysinfo>",
                30,
            ),
        ],
    )
    def test_is_that_of_smbios_unless_it_says_less_than_the_kernel_has(
        self, sysinfo: str, gib: int
    ) -> None:
        assert measure(self.XML, None, sysinfo).memory_bytes == gib * GIB

    @given(st.integers(1, 32 << 20))
    def test_stands_still_while_what_the_kernel_has_moves(self, kib: int) -> None:
        xml = capabilities(f"<cell><memory>{kib}</memory><cpus>{cpu(0, 0, 0)}</cpus></cell>")
        assert measure(xml, None, modules("32 GB")).memory_bytes == 32 * GIB


class TestCpuModel:
    XML = capabilities(cell(cpu(0, 0, 0)), cpu="<model>EPYC-Milan</model>")
    SMBIOS = (
        "<sysinfo type='smbios'><processor><entry name='status'>Unpopulated</entry>"
        "<entry name='version'>Empty</entry></processor><processor>"
        "<entry name='version'>Intel(R) Xeon(R) Gold 6330 CPU @ 2.00GHz      </entry>"
        "<entry name='status'>Populated, Enabled</entry></processor></sysinfo>"
    )
    POWER = (
        "<sysinfo type='smbios'><processor><entry name='type'>POWER8 (raw)</entry>"
        "<entry name='version'>2.0 (pvr 004d 0200)</entry></processor></sysinfo>"
    )

    @pytest.mark.parametrize(
        ("sysinfo", "cpuinfo", "expected"),
        [
            (SMBIOS, "model name\t: kernel's\n", "Intel(R) Xeon(R) Gold 6330 CPU @ 2.00GHz"),
            (None, "processor\t: 0\nmodel name\t: AMD EPYC 7543 32-Core Processor\n" * 2, None),
            (POWER, "processor\t: 0\ncpu\t\t: POWER8 (raw)\nrevision\t: 2.0\n", "POWER8 (raw)"),
            (
                None,
                "vendor_id       : IBM/S390\n"
                "processor 0: version = FF,  identification = 000123,  machine = 8561\n",
                "IBM/S390 8561",
            ),
            ("<broken", "processor\t: 0\nBogoMIPS\t: 50.00\n", "EPYC-Milan"),
            (SMBIOS.replace("Intel(R) Xeon(R) Gold 6330 CPU @ 2.00GHz", "N/A"), None, "EPYC-Milan"),
            (None, None, "EPYC-Milan"),
        ],
    )
    def test_is_smbios_then_the_kernels_then_libvirts(
        self, sysinfo: str | None, cpuinfo: str | None, expected: str | None
    ) -> None:
        expected = expected or "AMD EPYC 7543 32-Core Processor"
        assert measure(self.XML, None, sysinfo, cpuinfo).cpu_model == expected

    def test_may_be_unknown(self) -> None:
        assert measure(capabilities(cell(cpu(0, 0, 0)))).cpu_model is None


class TestLibvirtsOwn:
    @pytest.fixture
    def connection(self) -> Iterator[libvirt.virConnect]:
        connection = libvirt.open("test:///default")
        yield connection
        connection.close()

    def test_test_driver_has_two_nodes_of_eight_cores(self, connection: libvirt.virConnect) -> None:
        found = measure(connection.getCapabilities(), connection.getInfo(), connection.getSysinfo())
        assert found == Capacity(
            cpu_model=None, sockets=2, cores_per_socket=8, threads_per_core=1, memory_bytes=6 * GIB
        )

    def test_node_info_is_read_as_libvirt_python_orders_it(
        self, connection: libvirt.virConnect
    ) -> None:
        found = measure(capabilities(), connection.getInfo())
        assert (counted(found), found.memory_bytes) == ((4, 2, 2), 3 * GIB)
