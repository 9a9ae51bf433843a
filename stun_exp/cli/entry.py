"""The commands, which can be stopped while they load."""

from stun_exp.cli.interrupts import stoppable


def stun() -> None:
    with stoppable():
        from stun_exp.cli.main import main

        main()


def stun_clusters() -> None:
    with stoppable():
        from stun_exp.report.clusters.command import main

        main()


def stun_report() -> None:
    with stoppable():
        from stun_exp.report.command import main

        main()
