"""Residency against a small world: one VM, three hosts, and libvirt's events as bad as can be.

The world below knows where the VM is. It is moved, started, stopped, saved and paused at random;
each step sends the events that libvirt was seen to send. An enabler on each host hears them late,
twice, in any order or never, asks its questions, and gets each answer at any later time. In the
end, when everything is heard and every doubt is settled, exactly the host on which the VM lives
calls it resident.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from enabler import residency
from enabler.events import (
    ArrivedBy,
    Event,
    Job,
    Kind,
    Lifecycle,
    MigrationIteration,
    Observation,
    Presence,
    Seen,
    Unseen,
    VmFacts,
)
from enabler.residency import Place, Vm

UUID = "11111111-0000-4000-8000-000000000001"
FACTS = VmFacts(UUID, "db01", None, 2, 2**30, frozenset())
T0 = datetime(2026, 11, 23, tzinfo=UTC)
HOSTS = ("a", "b", "c")


@dataclass
class Domain:
    """The domain as one host's libvirt has it."""

    run: str
    presence: Presence = Presence.HERE
    job: Job = Job.NONE


@dataclass
class Host:
    """One host: its libvirt's truth, and its enabler's belief."""

    name: str
    domain: Domain | None = None
    vm: Vm = field(default_factory=Vm)
    unheard: list[Event] = field(default_factory=list)
    answers: list[Observation] = field(default_factory=list)
    lost: bool = False

    @property
    def component_id(self) -> str:
        return f"sha256:{self.name}"

    def tell(self, kind: Kind, arrived_by: ArrivedBy = ArrivedBy.UNKNOWN) -> None:
        self.unheard.append(Lifecycle(UUID, kind, T0, arrived_by))

    def hear(self, event: Event) -> None:
        self.vm = residency.apply(self.vm, event)

    def ask(self) -> Observation:
        if self.domain is None:
            return Unseen(UUID, T0, self.vm.news)
        found = self.domain
        news = self.vm.news
        return Seen(FACTS, found.presence, found.job, found.run, ArrivedBy.UNKNOWN, T0, news)

    def believe(self, answer: Observation) -> None:
        self.vm = residency.observe(self.vm, answer, self.component_id)

    def settle(self) -> None:
        while not self.vm.settled:
            self.believe(self.ask())


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.hosts = {name: Host(name) for name in HOSTS}
        self.runs = itertools.count()
        self.home: Host | None = None
        self.target: Host | None = None
        self.switched = False
        self.saved = False

    def new_run(self) -> str:
        return f"run-{next(self.runs)}"

    @initialize(name=st.sampled_from(HOSTS))
    def start_somewhere(self, name: str) -> None:
        self.start(name)

    # What happens to the VM ------------------------------------------------------------------

    @precondition(lambda self: self.home is None)
    @rule(name=st.sampled_from(HOSTS))
    def start(self, name: str) -> None:
        host = self.hosts[name]
        host.domain = Domain(self.new_run())
        host.tell(Kind.STARTED, ArrivedBy.RESTORE if self.saved else ArrivedBy.START)
        host.tell(Kind.RESUMED)
        self.home, self.saved = host, False

    @precondition(lambda self: self.home is not None and self.target is None)
    @rule(saved=st.booleans())
    def stop(self, saved: bool) -> None:
        assert self.home is not None
        self.home.domain = None
        self.home.tell(Kind.STOPPED)
        self.home, self.saved = None, saved

    @precondition(lambda self: self.home is not None and not self.switched)
    @rule()
    def pause_and_resume(self) -> None:
        assert self.home is not None
        self.home.tell(Kind.SUSPENDED)
        self.home.tell(Kind.RESUMED)

    @precondition(lambda self: self.home is not None and self.target is None)
    @rule(name=st.sampled_from(HOSTS))
    def begin_migration(self, name: str) -> None:
        assert self.home is not None
        assert self.home.domain is not None
        target = self.hosts[name]
        if target is self.home:
            return
        target.domain = Domain(self.new_run(), Presence.IN_TRANSIT, Job.INCOMING)
        target.tell(Kind.STARTED_INCOMING, ArrivedBy.MIGRATION)
        self.home.domain.job = Job.OUTGOING
        self.home.unheard.append(MigrationIteration(UUID))
        self.target = target

    @precondition(lambda self: self.target is not None and not self.switched)
    @rule()
    def abort_migration(self) -> None:
        assert self.home is not None
        assert self.home.domain is not None
        assert self.target is not None
        self.home.domain.job = Job.NONE
        self.target.domain = None
        self.target.tell(Kind.STOPPED)
        self.target = None

    @precondition(lambda self: self.target is not None and not self.switched)
    @rule(taken_back=st.booleans(), postcopy=st.booleans())
    def switch_over(self, taken_back: bool, postcopy: bool) -> None:
        assert self.home is not None
        assert self.home.domain is not None
        assert self.target is not None
        assert self.target.domain is not None
        self.home.tell(Kind.SUSPENDED_MIGRATED)
        if taken_back:
            self.home.tell(Kind.RESUMED_MIGRATED, ArrivedBy.MIGRATION)
            self.abort_migration()
            return
        self.home.domain.presence = Presence.IN_TRANSIT
        self.target.domain.presence = Presence.HERE_POSTCOPY if postcopy else Presence.HERE
        if postcopy:
            self.target.tell(Kind.RESUMED_POSTCOPY, ArrivedBy.MIGRATION)
        self.target.tell(Kind.RESUMED_MIGRATED, ArrivedBy.MIGRATION)
        self.switched = True

    @precondition(lambda self: self.switched)
    @rule()
    def complete_migration(self) -> None:
        assert self.home is not None
        assert self.target is not None
        assert self.target.domain is not None
        self.home.domain = None
        self.home.tell(Kind.STOPPED)
        self.target.domain.presence, self.target.domain.job = Presence.HERE, Job.NONE
        self.home, self.target, self.switched = self.target, None, False

    # How badly it is heard -----------------------------------------------------------------------

    @rule(name=st.sampled_from(HOSTS), data=st.data(), again=st.booleans())
    def hear(self, name: str, data: st.DataObject, again: bool) -> None:
        host = self.hosts[name]
        if not host.unheard:
            return
        index = data.draw(st.integers(0, len(host.unheard) - 1), label="which event")
        event = host.unheard[index] if again else host.unheard.pop(index)
        host.hear(event)

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        for host in self.hosts.values():
            if host.unheard:
                last = len(host.unheard) - 1
                host.unheard.pop(
                    data.draw(st.integers(0, last), label=f"which event of {host.name}")
                )
                host.lost = True

    @rule(name=st.sampled_from(HOSTS))
    def hear_all_and_settle(self, name: str) -> None:
        host = self.hosts[name]
        while host.unheard:
            host.hear(host.unheard.pop(0))
        host.settle()

    @rule(name=st.sampled_from(HOSTS))
    def reconnect(self, name: str) -> None:
        host = self.hosts[name]
        host.vm = residency.doubt(host.vm)
        host.lost = False

    @rule(name=st.sampled_from(HOSTS))
    def ask(self, name: str) -> None:
        host = self.hosts[name]
        host.answers.append(host.ask())

    @rule(name=st.sampled_from(HOSTS), data=st.data())
    def answer(self, name: str, data: st.DataObject) -> None:
        host = self.hosts[name]
        if host.answers:
            index = data.draw(st.integers(0, len(host.answers) - 1), label="which answer")
            host.believe(host.answers.pop(index))

    # What must hold ------------------------------------------------------------------------------

    @invariant()
    def a_resident_has_a_stay_of_this_host_and_run(self) -> None:
        for host in self.hosts.values():
            if host.vm.resident:
                assert host.vm.stay is not None
                assert host.vm.run is not None
                wanted = residency.residency_id(host.component_id, UUID, host.vm.run)
                assert host.vm.stay.id == wanted

    @rule()
    def everything_is_heard_in_the_end(self) -> None:
        for host in self.hosts.values():
            while host.unheard:
                host.hear(host.unheard.pop(0))
            if host.lost:  # a lost event means a broken connection, and that is noticed
                host.vm, host.lost = residency.doubt(host.vm), False
            host.settle()
            for late in host.answers:
                host.believe(late)
            host.answers.clear()
            host.settle()
        living = self.target if self.switched else self.home
        resident = [host for host in self.hosts.values() if host.vm.resident]
        assert resident == ([] if living is None else [living])
        if living is not None:
            assert living.domain is not None
            assert living.vm.run == living.domain.run
        self.a_resident_has_a_stay_of_this_host_and_run()
        for host in self.hosts.values():
            if host is not living:
                assert host.vm.place in (Place.ABSENT, Place.ARRIVING, Place.LEAVING)

    def teardown(self) -> None:
        self.everything_is_heard_in_the_end()


World.TestCase.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)
TestWorld = World.TestCase
