"""The tutorials of docs/, followed command by command."""
