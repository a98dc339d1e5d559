-- Run once, by the superuser, in the new database `ratestream`. Each role gets what it needs and
-- no more: `ratestream db upgrade`, run as ratestream_migrations, makes the tables and grants the
-- other two what they need of them.
\set migrations_password `cat /run/secrets/postgres_migrations_password`
\set loader_password `cat /run/secrets/postgres_loader_password`
\set gateway_password `cat /run/secrets/postgres_gateway_password`

CREATE ROLE ratestream_migrations LOGIN PASSWORD :'migrations_password';
CREATE ROLE ratestream_loader LOGIN PASSWORD :'loader_password';
CREATE ROLE ratestream_gateway LOGIN PASSWORD :'gateway_password';

REVOKE ALL ON DATABASE ratestream FROM PUBLIC;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
ALTER DATABASE ratestream OWNER TO ratestream_migrations;
ALTER SCHEMA public OWNER TO ratestream_migrations;
GRANT CONNECT ON DATABASE ratestream TO ratestream_loader, ratestream_gateway;
GRANT USAGE ON SCHEMA public TO ratestream_loader, ratestream_gateway;
