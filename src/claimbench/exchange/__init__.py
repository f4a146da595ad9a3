"""Results that leave or arrive: folders of them opened, checked, compared and combined, and figures of other tools."""
