BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0001');
CREATE TABLE aliases (
	prefix_id INTEGER NOT NULL, 
	alias TEXT NOT NULL, 
	number BIGINT NOT NULL, 
	CONSTRAINT pk_aliases PRIMARY KEY (prefix_id, alias), 
	CONSTRAINT fk_aliases_prefix_id_number FOREIGN KEY(prefix_id, number) REFERENCES versions (prefix_id, number)
);
INSERT INTO "aliases" VALUES(1,'latest',3);
INSERT INTO "aliases" VALUES(1,'stable',1);
CREATE TABLE api_keys (
	id TEXT NOT NULL, 
	tenant_id INTEGER NOT NULL, 
	hash TEXT NOT NULL, 
	scopes TEXT NOT NULL, 
	note TEXT NOT NULL, 
	created DATETIME NOT NULL, 
	expires DATETIME, 
	revoked DATETIME, 
	CONSTRAINT pk_api_keys PRIMARY KEY (id), 
	CONSTRAINT fk_api_keys_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id)
);
INSERT INTO "api_keys" VALUES('0123456789abcdef',1,'9ad4213bb7b359de9ed248582f83070c3ac81ee6b9954062bbc1055923a64c05','push,use','the laptop','2026-07-01 12:00:00.000000',NULL,NULL);
CREATE TABLE audit (
	id INTEGER NOT NULL, 
	at DATETIME NOT NULL, 
	tenant TEXT NOT NULL, 
	name TEXT NOT NULL, 
	number BIGINT, 
	action TEXT NOT NULL, 
	done_by TEXT NOT NULL, 
	detail JSON NOT NULL, 
	CONSTRAINT pk_audit PRIMARY KEY (id)
);
INSERT INTO "audit" VALUES(1,'2026-07-01 12:00:00.000000','ann','',NULL,'add-tenant','','{"quotas": {"requests_per_minute": null, "tokens_per_minute": null, "concurrent": null, "prefixes": 10, "bytes": 1000000}}');
INSERT INTO "audit" VALUES(2,'2026-07-01 12:00:00.000000','bob','',NULL,'add-tenant','','{"quotas": {"requests_per_minute": null, "tokens_per_minute": null, "concurrent": null, "prefixes": null, "bytes": null}}');
INSERT INTO "audit" VALUES(3,'2026-07-01 12:00:00.000000','gone','',NULL,'add-tenant','','{"quotas": {"requests_per_minute": null, "tokens_per_minute": null, "concurrent": null, "prefixes": null, "bytes": null}}');
INSERT INTO "audit" VALUES(4,'2026-07-01 12:00:00.000000','ann','cards',1,'push','key-1','{"aliases": ["latest"]}');
INSERT INTO "audit" VALUES(5,'2026-07-01 12:00:00.000000','ann','cards',2,'push','key-1','{"aliases": ["latest"]}');
INSERT INTO "audit" VALUES(6,'2026-07-01 12:00:00.000000','ann','cards',3,'push','key-1','{"aliases": ["latest"]}');
INSERT INTO "audit" VALUES(7,'2026-07-01 12:00:00.000000','ann','cards',2,'delete','key-1','{"numbers": [2]}');
INSERT INTO "audit" VALUES(8,'2026-07-01 12:00:00.000000','ann','cards',1,'alias','key-1','{"alias": "stable", "was": null}');
INSERT INTO "audit" VALUES(9,'2026-07-01 12:00:00.000000','ann','cards',NULL,'share','','{"reader": "bob"}');
INSERT INTO "audit" VALUES(10,'2026-07-01 12:00:00.000000','','',NULL,'allow-base','key-1','{"trained": "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", "admitted": "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd", "why": "a twin in 8 bits"}');
INSERT INTO "audit" VALUES(11,'2026-07-01 12:00:00.000000','ann','',NULL,'make-key','','{"key": "0123456789abcdef", "scopes": ["push", "use"]}');
INSERT INTO "audit" VALUES(12,'2026-07-01 12:00:00.000000','gone','',NULL,'remove-tenant','','{"prefixes": 0, "bytes": 0}');
CREATE TABLE bases (
	admitted TEXT NOT NULL, 
	trained TEXT NOT NULL, 
	allowed_by TEXT NOT NULL, 
	why TEXT NOT NULL, 
	created DATETIME NOT NULL, 
	CONSTRAINT pk_bases PRIMARY KEY (admitted, trained)
);
INSERT INTO "bases" VALUES('dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','key-1','a twin in 8 bits','2026-07-01 12:00:00.000000');
CREATE TABLE prefixes (
	id INTEGER NOT NULL, 
	tenant_id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	last_number BIGINT NOT NULL, 
	num_kept BIGINT NOT NULL, 
	num_ready BIGINT NOT NULL, 
	CONSTRAINT pk_prefixes PRIMARY KEY (id), 
	CONSTRAINT uq_prefixes_tenant_id_name UNIQUE (tenant_id, name), 
	CONSTRAINT fk_prefixes_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id)
);
INSERT INTO "prefixes" VALUES(1,1,'cards',3,2,2);
CREATE TABLE registry (
	id TEXT NOT NULL, 
	is_marked BOOLEAN NOT NULL, 
	CONSTRAINT pk_registry PRIMARY KEY (id)
);
INSERT INTO "registry" VALUES('abababababababababababababababab',1);
CREATE TABLE shares (
	tenant_id INTEGER NOT NULL, 
	owner TEXT NOT NULL, 
	name TEXT NOT NULL, 
	prefix_id INTEGER NOT NULL, 
	CONSTRAINT pk_shares PRIMARY KEY (tenant_id, owner, name), 
	CONSTRAINT fk_shares_tenant_id FOREIGN KEY(tenant_id) REFERENCES tenants (id), 
	CONSTRAINT fk_shares_prefix_id FOREIGN KEY(prefix_id) REFERENCES prefixes (id)
);
INSERT INTO "shares" VALUES(2,'ann','cards',1);
CREATE TABLE tenants (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	folded TEXT NOT NULL, 
	requests_per_minute BIGINT, 
	tokens_per_minute BIGINT, 
	concurrent BIGINT, 
	prefixes BIGINT, 
	bytes BIGINT, 
	num_prefixes BIGINT NOT NULL, 
	num_bytes BIGINT NOT NULL, 
	created DATETIME NOT NULL, 
	removed DATETIME, 
	CONSTRAINT pk_tenants PRIMARY KEY (id), 
	CONSTRAINT uq_tenants_name UNIQUE (name), 
	CONSTRAINT uq_tenants_folded UNIQUE (folded)
);
INSERT INTO "tenants" VALUES(1,'ann','ann',NULL,NULL,NULL,10,1000000,1,3888,'2026-07-01 12:00:00.000000',NULL);
INSERT INTO "tenants" VALUES(2,'bob','bob',NULL,NULL,NULL,NULL,NULL,0,0,'2026-07-01 12:00:00.000000',NULL);
INSERT INTO "tenants" VALUES(3,'gone','gone',NULL,NULL,NULL,NULL,NULL,0,0,'2026-07-01 12:00:00.000000','2026-07-01 12:00:00.000000');
CREATE TABLE versions (
	prefix_id INTEGER NOT NULL, 
	number BIGINT NOT NULL, 
	state TEXT NOT NULL, 
	content_hash TEXT NOT NULL, 
	file_hash TEXT NOT NULL, 
	num_bytes BIGINT NOT NULL, 
	num_virtual_tokens BIGINT NOT NULL, 
	base_name TEXT NOT NULL, 
	base_fingerprint TEXT NOT NULL, 
	tokenizer_fingerprint TEXT NOT NULL, 
	geometry TEXT NOT NULL, 
	method TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	created_by TEXT NOT NULL, 
	is_chat BOOLEAN NOT NULL, 
	provenance JSON NOT NULL, 
	scores JSON NOT NULL, 
	created DATETIME NOT NULL, 
	CONSTRAINT pk_versions PRIMARY KEY (prefix_id, number), 
	CONSTRAINT fk_versions_prefix_id FOREIGN KEY(prefix_id) REFERENCES prefixes (id)
);
INSERT INTO "versions" VALUES(1,1,'ready','26aa96da9f0cb31e3c7eb1bb49b4e1df238ea584611174d4470612acbc9ac42a','011153e984df770d8e73cca58a5697ea2b9a8c38e96d51dcdb2ef31531eae374',1944,3,'some-model','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','f4bd248ca1aa3985bf1c99655e9f9a6c5e59b9f131fd11fcb19087bb0da6b5a5','prefix-tuning','kv','key-1',0,'{"data": {"task": "e2e"}, "seed": 0}','{"test": {"bleu": 57.5}}','2026-07-01 12:00:00.000000');
INSERT INTO "versions" VALUES(1,3,'ready','26aa96da9f0cb31e3c7eb1bb49b4e1df238ea584611174d4470612acbc9ac42a','011153e984df770d8e73cca58a5697ea2b9a8c38e96d51dcdb2ef31531eae374',1944,3,'some-model','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc','f4bd248ca1aa3985bf1c99655e9f9a6c5e59b9f131fd11fcb19087bb0da6b5a5','prefix-tuning','kv','key-1',0,'{"data": {"task": "e2e"}, "seed": 0}','{"test": {"bleu": 57.5}}','2026-07-01 12:00:00.000000');
CREATE INDEX ix_api_keys_tenant_id ON api_keys (tenant_id);
CREATE INDEX ix_prefixes_listed ON prefixes (tenant_id, name) WHERE num_ready > 0;
CREATE INDEX ix_versions_open ON versions (state, created) WHERE state <> 'ready';
CREATE INDEX ix_shares_prefix_id ON shares (prefix_id);
CREATE INDEX ix_audit_tenant_id ON audit (tenant, id);
CREATE INDEX ix_audit_tenant_name_id ON audit (tenant, name, id);
CREATE TRIGGER audit_UPDATE BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'rows of audit are never changed'); END;
CREATE TRIGGER audit_DELETE BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'rows of audit are never changed'); END;
COMMIT;
