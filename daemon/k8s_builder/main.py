"""`k8s-builder`: the operator's and developer's command. Each subcommand is a module of its own, loaded when called."""

from importlib import import_module

import click

_COMMANDS = {
    "demo": ("k8s_builder_lab.demo.command", "demo"),
    "doctor": ("k8s_builder.commands.doctor", "doctor"),
    "embedded-cluster": ("k8s_builder_lab.embedded.command", "embedded_cluster"),
    "install-client": ("k8s_builder.commands.install_client", "install_client"),
    "inspect": ("k8s_builder.commands.package", "inspect"),
    "logs": ("k8s_builder.commands.logs", "logs"),
    "package": ("k8s_builder.commands.package", "package"),
    "packageid": ("k8s_builder.commands.package", "packageid"),
    "status": ("k8s_builder.commands.status", "status"),
    "stop": ("k8s_builder.commands.stop", "stop"),
}


class _Lazy(click.Group):
    """Imports a subcommand when it is asked for: `packageid` should not wait for gRPC."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        package = module.partition(".")[0]
        if package != __package__ and not _is_there(package):
            return _left_out(cmd_name, package)
        command: click.Command = getattr(import_module(module), name)
        return command


def _is_there(package: str) -> bool:
    from importlib.util import find_spec  # takes as long as all that `status` needs beside click

    return find_spec(package) is not None


def _left_out(name: str, package: str) -> click.Command:
    """Return what stands for a command whose package a production image does not hold."""

    def fail() -> None:
        raise click.ClickException(
            f"{name} needs the package {package}, which is not installed: pip install 'k8s-builderd[demo]'"
        )

    anything = {"ignore_unknown_options": True, "allow_extra_args": True}
    text = f"Not in this installation: needs {package}."
    return click.Command(name, callback=fail, help=text, add_help_option=False, context_settings=anything)


@click.command(cls=_Lazy)
@click.version_option(package_name="k8s-builderd")
def main() -> None:
    """See and stop what k8s-builderd runs, make and inspect chaincode packages, and try it all without a cluster."""
