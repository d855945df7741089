"""What commit 16a85a5 said, made and relied on still holds: its clients, its Jobs and its cursors go on."""
